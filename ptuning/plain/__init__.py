"""Layer 0: plain Python, no torch. Errors, prompts, replies, metrics, settings."""
