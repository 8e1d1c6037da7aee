"""The language model: loading, hook points, one forward pass, splicing, patched runs, lenses."""
