"""What a sweep takes of a Ray cluster."""
