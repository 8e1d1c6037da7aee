"""Train sparse autoencoders on language-model activations, judge them, read their features."""
