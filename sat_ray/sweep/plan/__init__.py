"""What a sweep has to compute: the tasks that follow from its config and its records."""
