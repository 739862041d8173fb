"""What processes and devices can do: launches, precision, sharding, compiling, RAM."""
