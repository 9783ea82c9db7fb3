"""Models exported by torch: checked as archives, tried in a child process, loaded."""
