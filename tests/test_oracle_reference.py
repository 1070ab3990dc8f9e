"""A reference voice against transformers' CsmProcessor and model, and with moshi's codec."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import VOICE

from csm_hybrid.speech import Model, load

pytestmark = pytest.mark.oracle

SAID = ("The sun was shining when we left the house.", "I have never seen such a beautiful place.")
TEXT = "Please put the keys on the table."
# A sum of at most five f32 rows in another order.
TOLERANCE = 1e-6


@pytest.fixture
def model(bundles: Callable[[str, str], Path]) -> Model:
    return Model(bundles("voice", "f32"))


def test_the_prompt_is_what_transformers_makes_of_the_same_recordings(model: Model) -> None:
    """Tokens, frames, the ends of recordings and of texts, in their order, as embeddings."""
    import torch
    from transformers import (
        CsmForConditionalGeneration,
        CsmProcessor,
        EncodecFeatureExtractor,
        PreTrainedTokenizerFast,
    )

    recordings = [model.speak(said, seed=i).samples for i, said in enumerate(SAID)]
    segments = [
        model.segment(sound, said, rate=model.sample_rate, speaker=i)
        for i, (sound, said) in enumerate(zip(recordings, SAID, strict=True))
    ]
    ours = model.embedder.frames(model.prompt(TEXT, 0, segments))

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(VOICE / "tokenizer.json"), pad_token="<|pad|>")
    processor = CsmProcessor(EncodecFeatureExtractor(sampling_rate=model.sample_rate), tokenizer)
    begin, end, audio = "<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|><|audio_eos|>"
    text = "".join(f"{begin}[{i}]{said}{end}{audio}" for i, said in enumerate(SAID)) + f"{begin}[0]{TEXT}{end}"
    given = processor(text=text, audio=recordings)

    theirs = CsmForConditionalGeneration.from_pretrained(VOICE, dtype=torch.float32).eval()
    # Its codec has more books than it speaks.
    theirs.codec_model.encode = partial(theirs.codec_model.encode, num_quantizers=model.config.codebooks)
    with torch.no_grad():
        merged = theirs._merge_input_ids_with_input_values(
            given["input_ids"], given["input_values"], given["input_values_cutoffs"]
        )["inputs_embeds"][0].numpy()
    assert ours.shape == merged.shape
    np.testing.assert_allclose(ours, merged, rtol=0, atol=TOLERANCE * float(np.abs(merged).max()))


def test_moshis_codec_gives_the_same_reference(
    bundles: Callable[[str, str], Path], model: Model, tmp_path: Path
) -> None:
    spoken = model.speak(SAID[0], seed=3)
    soundfile.write(tmp_path / "anna.wav", spoken.samples, spoken.sample_rate, subtype="FLOAT")
    (tmp_path / "anna.txt").write_text(SAID[0])
    with load(bundles("voice", "f32"), codec="moshi") as other:
        theirs = other.segment(tmp_path / "anna.wav")
    ours = model.segment(tmp_path / "anna.wav")
    assert (theirs.text, theirs.codes.shape, theirs.codes.dtype) == (ours.text, ours.codes.shape, np.int32)
    # Two entries of a codebook that are equally near, but for rounding, may be told apart either way.
    assert (theirs.codes == ours.codes).mean() > 0.99
