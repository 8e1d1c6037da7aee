"""The suite "unlearning": whether clamping a topic's latents takes that topic away, and only it."""
