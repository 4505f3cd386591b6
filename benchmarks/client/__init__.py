"""What the client costs beside a bare socket that speaks the same protocol: `python -m benchmarks.client`."""
