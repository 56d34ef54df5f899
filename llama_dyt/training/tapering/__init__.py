"""Norms of a trained model that become others while it is trained, one after the other."""
