"""Labelled text for suites: which examples are taken, their activations, their latents."""
