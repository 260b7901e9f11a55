"""Shell scripts for users, and the recipe of the built-in model (scripts.tiny)."""
