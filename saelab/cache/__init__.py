"""The activation cache: a language model's activations, on disk or straight from the model."""
