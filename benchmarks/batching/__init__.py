"""Continuous batching against the other ways to make the same images: `python -m benchmarks.batching`."""
