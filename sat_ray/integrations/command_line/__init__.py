"""The command line: options, checks, the driver, and a module for each command that is no stage."""
