"""What it means: figures, and later the analyses of the paper."""
