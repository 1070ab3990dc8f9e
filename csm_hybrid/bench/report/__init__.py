"""What was found, for people: a table for the terminal, a page with charts."""
