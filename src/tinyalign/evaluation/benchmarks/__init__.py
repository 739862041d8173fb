"""Benchmarks by name: one file each reads its official files, asks, parses and scores."""
