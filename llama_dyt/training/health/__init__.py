"""Whether a run still learns, and as it should: what is looked at beside the loss, and what then becomes of the run."""
