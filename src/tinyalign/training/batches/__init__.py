"""What a step is made of: items, streams, micro-batches, memory drop-out."""
