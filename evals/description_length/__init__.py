"""How many bits it takes to say what a dictionary says of a token."""
