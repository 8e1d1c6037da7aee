"""What several pages are made of: figures, tables, tokens, texts."""
