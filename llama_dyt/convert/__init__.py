"""Checkpoints of other programs and ours, one into the other, a tensor at a time: what convert.py is made of."""
