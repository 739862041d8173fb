"""Training the Perceiver, fitting key functions, and the closed form from latents to words."""
