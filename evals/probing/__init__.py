"""The suite "probing": what linear probes read off a few latents, beside probes on activations."""
