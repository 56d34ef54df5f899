"""Machines looked at before a run is launched on them (scripts/check_cluster.py): one agent on each, asked from one.

agent (what runs on a machine), facts (what it tells of itself), links (what lies between two), machines (agents over
ssh or srun), examine (what is asked of all), faults (what is wrong, and what to do), table (for people).
"""
