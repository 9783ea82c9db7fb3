"""HTML pages, model cards and notes for MLflow."""
