"""The dark-matter suite: what a dictionary does not explain, taken apart (arXiv 2410.14670)."""
