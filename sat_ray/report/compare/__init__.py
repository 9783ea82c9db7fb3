"""Two evaluations compared on the same images."""
