"""report.html: a run, or several beside each other, in one file that needs no network."""
