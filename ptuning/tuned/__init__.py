"""Layer 3: backbone + prefix = the tuned model; rows to batches; every checkpoint format."""
