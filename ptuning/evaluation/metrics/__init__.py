"""Scores of answers: one file a metric or a family of them, one registry, and what is computed from it."""
