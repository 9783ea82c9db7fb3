"""Where the search looks, how it halves, and how the best model is selected."""
