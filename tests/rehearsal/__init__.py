"""A pretended CUDA card (`card`), and tests that run the worker on it. Needs no GPU and no CUDA build of torch."""
