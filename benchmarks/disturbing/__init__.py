"""The parts of chaos.py: runs that can be disturbed, what disturbs them, and rounds that compare the two."""
