"""The supervised suite: dictionaries against the best that labels can give (arXiv 2405.08366)."""
