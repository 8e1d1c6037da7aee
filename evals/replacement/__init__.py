"""What replacing all that a set of dictionaries writes costs the model."""
