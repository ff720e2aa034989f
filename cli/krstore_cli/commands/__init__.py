"""The commands of `krstore`, one module each, with the example that ends its help."""
