"""One file a format: what reads it is its SOURCE, what writes it its TARGET."""
