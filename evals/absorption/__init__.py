"""The suite "absorption": whether latents for first letters stay silent where others stand in."""
