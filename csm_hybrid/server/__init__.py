"""The OpenAI-compatible speech server: ``app.py`` puts it together, ``worker.py`` runs the engine."""
