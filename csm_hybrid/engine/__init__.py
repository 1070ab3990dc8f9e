"""The loop that speaks: requests, slots and their order, history, kept prefixes, and the thread that drives it."""
