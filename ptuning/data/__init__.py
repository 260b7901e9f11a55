"""From files of rows to padded batches of ids: tokenizers, prompts, rows and their forms, truncation, collator."""
