"""Checks whether a broker, client or worker follows `docs/protocol.md`, over real sockets.

`python -m imagegen_protocol.conformance --help` describes the command.
"""
