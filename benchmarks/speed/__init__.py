"""Measure what the losses cost: ``python -m benchmarks.speed``; see CONTRIBUTING.md."""
