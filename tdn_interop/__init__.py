"""Interoperation of privacy-computing platforms in three tiers: transport, algo, app."""

__version__ = "0.1.0"
