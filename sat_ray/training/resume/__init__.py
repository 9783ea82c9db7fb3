"""What lets a training go on: its state, its checkpoints, and notice of preemption."""
