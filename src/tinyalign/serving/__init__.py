"""How people use a model."""
