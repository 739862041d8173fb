"""What answers are scored by: captions, VQA accuracy, WUPS, and intervals."""
