"""The update of the weights: optimizer, learning-rate schedules, averaged weights."""
