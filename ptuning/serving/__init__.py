"""One model for many clients: service, conversation, prefixes by name."""
