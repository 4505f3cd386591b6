"""The real cores of broker, worker and client on simulated time: figures that no other process disturbs."""
