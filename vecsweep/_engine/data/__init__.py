"""Batches: where they come from, what is in them, and how one is told from another."""
