"""Files between nodes, exactly once, whoever dies."""
