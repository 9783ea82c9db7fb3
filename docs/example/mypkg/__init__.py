"""What somebody brings along: activations, a network and a dataset."""
