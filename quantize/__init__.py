"""Checkpoint to GGUF: reads either flavour of CSM and writes the single-file model."""
