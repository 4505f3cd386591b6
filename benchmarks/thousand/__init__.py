"""A day of a thousand GPUs, on simulated time."""
