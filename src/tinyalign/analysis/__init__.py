"""What it means: curves, contact sheets, pages of flips, peaks of memory."""
