"""The suite "steering": what adding a latent's direction does to the model's logits, anywhere."""
