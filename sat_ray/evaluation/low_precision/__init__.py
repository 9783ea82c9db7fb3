"""Gradients from a faster copy of the model, verified in float32."""
