"""The suite "core": how well a dictionary reconstructs, how sparsely, at what cost to the model."""
