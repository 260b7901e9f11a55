"""Answers to test rows and their scores: generation, journal, metrics, intervals, reports."""
