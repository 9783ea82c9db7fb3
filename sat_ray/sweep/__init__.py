"""What a sweep is: its configuration, search space, tasks, records and cost."""
