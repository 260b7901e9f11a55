"""Tuning: trainer, progress, interruption, a run from settings to a checkpoint."""
