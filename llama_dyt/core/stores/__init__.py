"""Stores of this package; one file each, with an attribute STORE."""
