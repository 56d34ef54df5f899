"""A model that learns from another one's answers, the teacher's, beside its text."""
