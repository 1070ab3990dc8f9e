"""Word error rate of a model over ``eval.txt``, as Whisper hears it: a tool for judging weights and types.

``python tests/voice/hear.py MODEL.gguf WHISPER_DIR [--seeds 3]``. Needs faster-whisper and jiwer beside the
installed package; WHISPER_DIR holds Whisper-base in faster-whisper's layout.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import jiwer
import numpy as np
import soxr
from faster_whisper import WhisperModel

import csm_hybrid

EVAL = Path(__file__).with_name("eval.txt")


def words(text: str) -> str:
    """Lower-case words alone, "-" where there are none."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split()) or "-"


def main() -> None:
    """Prints one line per speaker and seed, then the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("whisper", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--show", type=int, default=0, help="print this many transcriptions")
    args = parser.parse_args()
    judge = WhisperModel(str(args.whisper), device="cpu", compute_type="int8")
    lines = [line for line in EVAL.read_text().splitlines() if line][: args.sentences]
    with csm_hybrid.load(args.model) as model:
        for speaker in (0, 1):
            rates = []
            for seed in range(args.seeds):
                heard = []
                for i, line in enumerate(lines):
                    speech = model.speak(line, speaker=speaker, seed=1000 * seed + i, temperature=args.temperature)
                    sound = soxr.resample(speech.samples, speech.sample_rate, 16000).astype(np.float32)
                    segments, _ = judge.transcribe(
                        sound, language="en", beam_size=1, condition_on_previous_text=False
                    )
                    heard.append(words(" ".join(s.text for s in segments)) if len(sound) else "-")
                    if i < args.show and seed == 0:
                        print(f"    {line} | {heard[-1]}")
                rates.append(jiwer.wer([words(line) for line in lines], heard))
            print(f"speaker {speaker}: {100 * np.mean(rates):.1f} %, by seed", *(f"{100 * r:.1f}" for r in rates))


if __name__ == "__main__":
    main()
