"""Values of an outcome's first_broken_step that are no step; a step counts from 0, the start."""

NEVER = -1
CLEAN_ERROR = -2
