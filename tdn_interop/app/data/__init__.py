"""Data in and data out: reading tables, keys for matching, result files."""
