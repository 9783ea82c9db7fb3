"""Ray Tune: grid with halving, asynchronous search, and the trials of both."""
