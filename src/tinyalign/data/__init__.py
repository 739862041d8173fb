"""The data room: files to samples, samples to token ids, labels and batches."""
