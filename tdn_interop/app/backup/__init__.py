"""Copies of a node, and what keeps two of them from running."""
