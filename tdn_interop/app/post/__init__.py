"""Durable messages to other nodes, and letters for those that are away."""
