"""Measuring: what the machine can do, what speech costs on it, and where the time goes."""
