"""The measurements of `run.py`: one module each, with `measure(settings)`."""
