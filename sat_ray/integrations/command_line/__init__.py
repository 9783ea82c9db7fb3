"""The command line: options, preflight, the driver, and one module for each command that is no stage."""
