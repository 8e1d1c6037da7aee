"""The suite "crosscoder"."""
