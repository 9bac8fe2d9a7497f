"""A table: read from a file or a data frame, typed, cleaned, checked for leakage, split."""
