"""Pieces several training methods share: weights, dead-latent counting, auxiliary losses."""
