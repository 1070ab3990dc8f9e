"""The model file: its numbers, its schema, opening and checking it."""
