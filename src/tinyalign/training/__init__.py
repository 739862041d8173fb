"""How it learns: recipes, caches, the Perceiver's training, and both stages of the model's."""
