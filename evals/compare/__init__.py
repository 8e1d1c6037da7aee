"""`saelab compare`: one report over many trained dictionaries, a row per method, width and L0."""
