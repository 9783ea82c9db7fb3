"""Data parallelism with equal numbers on any number of processes."""
