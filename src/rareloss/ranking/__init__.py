"""What ranking losses stand on: the soft count, the moving threshold, and the pool that rows are ranked in."""
