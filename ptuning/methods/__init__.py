"""Tuning methods: what is trained, how it is attached to a model, and what a checkpoint holds of it."""
