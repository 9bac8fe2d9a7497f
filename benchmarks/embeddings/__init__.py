"""Frozen embeddings with a rare class: data for the other commands, and the page on what a head gains."""
