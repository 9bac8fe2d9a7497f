"""Data whose truth is known, made to isolate where a ranking loss pays."""
