"""The Mimi codec: frames of codes to sound and back."""
