"""The suite "scr-tpp": what ablating a concept's latents does to probes."""
