"""Whether decoder rows are themselves made of fewer directions."""
