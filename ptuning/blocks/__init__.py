"""Layer 1: the parts a backbone is built of. Tokenizer, rotary positions, attention, quantised linear, prefix encoder."""
