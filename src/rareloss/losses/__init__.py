"""What users train with: focal losses, and losses that optimise a ranking at an operating point."""
