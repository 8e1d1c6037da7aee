"""Text: sources, splits, and packing into contexts of tokens."""
