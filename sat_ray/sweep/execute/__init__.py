"""Do one task, from its inputs to its committed record, wherever it runs."""
