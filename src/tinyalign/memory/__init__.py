"""The memory room: what remembers. Keys, values, banks, search, retrieval and neighbour tables."""
