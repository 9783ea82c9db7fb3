"""The pipeline and its stages, as commands."""
