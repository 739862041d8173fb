"""A model asked sample by sample: batches, shards, files that a kill cannot spoil."""
