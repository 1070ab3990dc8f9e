"""Numbers that several parts share and nobody sets: what stands in for what a model file leaves out, and the limits
of one utterance. Defaults of what can be set stand with their options (:mod:`csm_hybrid.options`)."""

from __future__ import annotations

# csm.rs's sampling, for a model file that brings none of its own.
TEMPERATURE = 0.7
TOP_K = 100

# The longest utterance of the model when no other limit is given, in seconds.
LONGEST_UTTERANCE = 30.0
# The longest chunk of text, in characters: about 17 seconds of English, well within CSM's usual 30.
LONGEST_CHUNK = 250
# The longest chunk in tokens. With CSM-1B's tokenizer English reaches LONGEST_CHUNK characters first; other scripts
# take more tokens, and more time to say, for a character. The embedded model, a token of which is a byte, was taught
# single sentences: of its first weights' words Whisper misheard 23 % in chunks of up to 80 characters, 80 % in chunks
# of 250.
LONGEST_TOKENS = 80
