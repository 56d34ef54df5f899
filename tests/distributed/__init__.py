"""Tests that need several processes. `harness.py` starts them, `cases.py` holds what they share."""
