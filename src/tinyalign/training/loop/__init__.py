"""The Trainer, its arguments and its callbacks: early stopping is here."""
