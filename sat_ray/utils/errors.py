"""Errors that a command reports in one line, without a traceback."""


class ReportedError(RuntimeError):
    """The work cannot go on, for a reason that one line explains; no input of the user is wrong."""
