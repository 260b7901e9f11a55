"""Everything that is read from and written to checkpoints: hub, weights, prefixes, adapters, run states, placement."""
