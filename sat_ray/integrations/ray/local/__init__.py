"""The private Ray of one machine: its folders, process groups, and what killed attempts left."""
