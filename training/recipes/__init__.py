"""The recipes that ship with saelab: YAML files, listed by `saelab recipes`."""
