"""Models that were made elsewhere: loading and validating them."""
