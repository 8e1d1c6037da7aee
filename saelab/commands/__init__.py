"""The sub-commands that belong to no single room; each module has `main(arguments)`."""
