"""Checkpoint to GGUF: reads either flavour of CSM and writes the single-file model.

The package is ``csm_hybrid.quantize``; ``csm_hybrid/quantize`` is a link to this folder.
"""
