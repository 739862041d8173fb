"""Work that is done once and kept: vision features, pixels, token ids, queries."""
