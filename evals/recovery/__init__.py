"""The suite "recovery": which of the planted features a dictionary found."""
