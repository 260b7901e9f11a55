"""Shell scripts for users, and the recipe of the embedded default model (scripts.tiny)."""
