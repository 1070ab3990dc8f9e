"""A model: its numbers, its single file, and how a file is found."""
