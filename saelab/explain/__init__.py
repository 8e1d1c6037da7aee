"""Explanations: what a feature fires on, in words, with scores beside those of controls."""
