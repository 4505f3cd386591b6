"""One program a peer, run in that peer's own environment: `python -m benchmarks.peers.setups.NAME SCENARIO`.

It starts the peer, asks it, and prints what it saw as one JSON object. Standard library only beside the peer.
"""
