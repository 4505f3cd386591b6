"""The checks and measurements for a machine with a GPU: `make gpu`, or `python -m benchmarks.gpu`."""
