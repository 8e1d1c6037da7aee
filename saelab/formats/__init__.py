"""Every kind of file: how it is written, what it says of itself, how it is checked."""
