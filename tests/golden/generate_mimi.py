"""Makes ``mimi.npz``, moshi's results for the tiny codec: ``python tests/golden/generate_mimi.py`` (needs moshi).

It holds the weights too, so that the test does not hang on a random generator.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
FRAMES = 12  # 24 steps: beyond the tiny context of 7


def main() -> None:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import torch
    from mimi_models import TINY, random_codes, random_tensors

    from csm_hybrid.backends.moshi_codec import build_model, moshi_state

    tensors = random_tensors(TINY)
    model = build_model(TINY)
    model.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in moshi_state(TINY, tensors).items()})
    codes = random_codes(TINY, FRAMES)
    sound = np.random.default_rng(2).standard_normal(FRAMES * TINY.frame_samples).astype(np.float32)
    with torch.inference_mode():
        decoded = model.decode(torch.from_numpy(codes.transpose(0, 2, 1).astype(np.int64)))[0, 0].numpy()
        encoded = model.encode(torch.from_numpy(sound)[None, None])[0].numpy().T.astype(np.int32)
    np.savez_compressed(
        Path(__file__).parent / "mimi.npz",
        codes=codes,
        decoded=decoded,
        sound=sound,
        encoded=encoded,
        **{f"weights/{name}": value for name, value in tensors.items()},
    )


if __name__ == "__main__":
    main()
