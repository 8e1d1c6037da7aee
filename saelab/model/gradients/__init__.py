"""Gradients with respect to activations, by hand where autograd is slow."""
