"""Layer 2: the frozen GLM backbone."""
