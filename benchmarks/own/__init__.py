"""What is measured in saelab's own environment: saelab and the bare operations beside it."""
