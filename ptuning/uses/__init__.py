"""Layer 5: what people do with a tuned model. Tuning runs, evaluation, chat sessions."""
