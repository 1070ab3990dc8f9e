"""The tiny checkpoints are what transformers takes for a CSM: tests on them speak of the real thing."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.oracle


def test_transformers_loads_the_golden_checkpoint(checkpoints):
    from transformers import CsmForConditionalGeneration

    folder = checkpoints("transformers")
    _, report = CsmForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"], report
    assert not report["missing_keys"], report
