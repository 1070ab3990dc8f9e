"""A fast, small speech engine for Sesame's CSM: text in, speech out."""
