"""Samples in one row that do not see each other."""
