"""Continuous batching of attacks over a fixed number of slots."""
