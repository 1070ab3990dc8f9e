"""What is written becomes what is said: normalised, cut into chunks, and built into the prompt's frames."""
