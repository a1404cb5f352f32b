"""Proof that a bundle computes what the reference does."""
