"""How much memory a model or a run needs, and what to set where it does not suffice."""
