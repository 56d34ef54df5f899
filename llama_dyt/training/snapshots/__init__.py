"""Snapshots: the training state in the memory of machines, from which a run that failed goes on within seconds."""
