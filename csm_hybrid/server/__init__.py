"""The OpenAI-compatible speech server: ``app.py`` puts it together, ``synthesis.py`` asks the engine for speech."""
