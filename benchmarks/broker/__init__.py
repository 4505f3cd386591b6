"""The broker beside libzmq's proxy, which is the limit, and a bare Python loop: `python -m benchmarks.broker`."""
