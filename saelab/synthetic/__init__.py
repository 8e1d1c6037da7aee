"""Planted dictionaries: rows made of known features, to test what a training method recovers."""
