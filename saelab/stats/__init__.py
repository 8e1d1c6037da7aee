"""Metrics and their definitions, moments, and laws of densities."""
