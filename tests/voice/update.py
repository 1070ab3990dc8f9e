"""Takes new weights of the embedded voice: ``python tests/voice/update.py CHECKPOINT_DIR``.

The checkpoint (transformers' layout, one file) is kept here in two shards, towers and codec, so that new
towers do not store the codec again.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent
SHARDS = {"towers": "model-00001-of-00002.safetensors", "codec": "model-00002-of-00002.safetensors"}
PLAIN = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def split(source: Path, target: Path) -> None:
    """Writes the two shards of ``source`` and their index into ``target``."""
    weight_map: dict[str, str] = {}
    total = 0
    with safe_open(source / "model.safetensors", "numpy") as checkpoint:
        for part, name in SHARDS.items():
            keys = [k for k in sorted(checkpoint.keys()) if k.startswith("codec_model.") == (part == "codec")]
            tensors = {k: checkpoint.get_tensor(k) for k in keys}
            total += sum(t.nbytes for t in tensors.values())
            save_file(tensors, target / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    for name in PLAIN:
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    split(Path(sys.argv[1]), HERE)
