"""A comparison of methods on one table: runs, statistics, the verdict and its page."""
