"""The ways to train one model pair that `benchmarks/training.py` compares, one file each."""
