"""What a result is held against: shuffled and random memories, memories alone."""
