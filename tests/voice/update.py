"""Takes new weights of the embedded model: ``python tests/voice/update.py CHECKPOINT_DIR``.

Does all that new weights need: keeps the checkpoint (transformers' layout, one file) here in two shards,
towers and codec, so that new towers do not store the codec again; computes the reference figures with
transformers into ``figures.json``; and converts the voice that ships in the package. Needs torch and
transformers beside the installed package.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent
SHARDS = {"towers": "model-00001-of-00002.safetensors", "codec": "model-00002-of-00002.safetensors"}
PLAIN = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
NAME = "csm-voice"  # as the packaged model calls itself
PACKAGED = HERE.parents[1] / "csm_hybrid" / "voice" / "csm-voice-q8_0.gguf"


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


def heldout() -> list[dict[str, Any]]:
    """The held-out utterances: speaker, text, codes (frames x the codec's codebooks; towers may have fewer)."""
    return [json.loads(line) for line in (HERE / "heldout.jsonl").read_text().splitlines()]


def reference_nll(checkpoint: Path) -> list[float]:
    """Teacher-forced negative log-likelihood of each codebook on the held-out set, nats, by transformers in f32.

    The text is tokenised by the checkpoint's own tokenizer; the end-of-speech frame counts as a frame.
    """
    import torch
    import torch.nn.functional as F
    from tokenizers import Tokenizer
    from transformers import CsmForConditionalGeneration

    model = CsmForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    k = model.config.num_codebooks
    rows = []
    with torch.no_grad():
        for row in heldout():
            text = torch.tensor(tokenizer.encode(f"[{row['speaker']}]{row['text']}").ids)
            codes = torch.tensor(row["codes"])[:, :k]
            audio = model.backbone_model.embed_tokens(codes[None])[0]
            inputs = torch.cat([model.embed_text_tokens(text), audio])[None]
            hidden = model.backbone_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, len(text) - 1 :]
            want = torch.cat([codes, torch.zeros(1, k, dtype=torch.long)])
            first = model.lm_head(hidden)[:, None]
            ids = torch.cat([torch.zeros(len(want), 1, dtype=torch.long), want[:, :-1]], 1)
            rest = model.depth_decoder(input_ids=ids, backbone_last_hidden_state=hidden, use_cache=False).logits
            logits = torch.cat([first, rest[:, -(k - 1) :]], 1)
            loss = F.cross_entropy(logits.flatten(0, 1), want.flatten(), reduction="none")
            rows.append(loss.view(-1, k).double().numpy())
    return [float(v) for v in np.concatenate(rows).mean(axis=0)]


def main() -> None:
    """Takes in the checkpoint named on the command line, or refreshes from the one that is here."""
    if len(sys.argv) > 1:
        split(Path(sys.argv[1]), HERE)
    figures = {"nll": reference_nll(HERE), "frames": sum(len(r["codes"]) + 1 for r in heldout())}
    (HERE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")

    from csm_hybrid.quantize.convert import convert
    from csm_hybrid.quantize.recipe import recipe_named
    from csm_hybrid.quantize.source import open_checkpoint, with_overrides

    checkpoint = with_overrides(open_checkpoint(HERE), name=NAME, prompt_template=None)
    convert(checkpoint, PACKAGED, recipe_named("q8_0"))


if __name__ == "__main__":
    main()
