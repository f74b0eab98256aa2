"""The owner's socket: what is asked there, and by whom."""
