"""Gradients from a surrogate (a faster copy of the model), and their verification in float32."""
