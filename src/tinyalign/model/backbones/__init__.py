"""Vision towers and language models: loading them, and what is known of public ones."""
