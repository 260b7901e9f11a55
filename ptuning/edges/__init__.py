"""Layer 6: where a user meets the program. Nothing imports this layer."""
