"""What a run measures of itself: rates, FLOP, metrics.jsonl, trackers."""
