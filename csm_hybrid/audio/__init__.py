"""Sound outside the model: formats and encoders, files, resampling, and recordings as references for a voice."""
