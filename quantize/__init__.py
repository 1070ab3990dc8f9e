"""Checkpoint to GGUF: reads every layout of CSM and writes the single-file model.

The build installs this folder as the package ``csm_hybrid.quantize``.
"""
