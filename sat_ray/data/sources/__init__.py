"""Where images come from: one module for each format, one registry."""
