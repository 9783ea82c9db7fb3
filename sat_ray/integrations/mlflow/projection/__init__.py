"""What MLflow shows of a sweep, written from its committed records."""
