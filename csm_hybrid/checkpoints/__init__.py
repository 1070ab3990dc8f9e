"""From the flags that name a model to a model file on this machine: local, hub, kept conversions."""
