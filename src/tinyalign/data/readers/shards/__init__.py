"""Tar and parquet shards, near or far, read as a data set or as a stream."""
