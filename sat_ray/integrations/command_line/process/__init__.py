"""The process of a command: how it was started, signals, and the status that it ends with."""
