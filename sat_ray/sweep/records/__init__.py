"""Immutable records, the lease of a sweep, and merged outcomes."""
