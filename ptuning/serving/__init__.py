"""One model for many who ask: service, conversation, prefixes by name."""
