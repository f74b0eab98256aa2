"""Jobs: what is agreed, who computes what, and how it ends."""
