"""How many neurons and latents a model can do without."""
