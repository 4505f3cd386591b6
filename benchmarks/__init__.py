"""What the engine is worth, in figures. Start one with `python -m benchmarks.engine` or `benchmarks.gpu`."""
