"""ZMTP 3.1 by hand on a plain TCP socket, without security: for bytes that libzmq would never send."""

import socket
import struct

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def connect(endpoint, routing_id):
    """Connect to a ROUTER as a DEALER of this routing id; return the socket after the handshake."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), 60)
    try:
        properties = _property(b"Socket-Type", b"DEALER") + _property(b"Identity", routing_id)
        peer.sendall(_GREETING + command(b"READY", properties))
        _read(peer, len(_GREETING))
        _, size = _read(peer, 2)
        _read(peer, size)
    except BaseException:
        peer.close()
        raise
    return peer


def command(name, body):
    """Return a short command."""
    content = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(content)]) + content


def ping(lifetime=0):
    """Return a PING; `lifetime`: tenths of a second after which the receiver may close a silent connection."""
    return command(b"PING", struct.pack(">H", lifetime))


def message(frame):
    """Return a message of one short frame."""
    return b"\x00" + bytes([len(frame)]) + frame


def first_part(frame):
    """Return a long frame of a message that has further frames."""
    return b"\x03" + struct.pack(">Q", len(frame)) + frame


def reset(peer):
    """Close with a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def _property(name, value):
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def _read(peer, size):
    data = b""
    while len(data) < size:
        data += (part := peer.recv(size - len(data)))
        assert part, "the other side closed the connection"
    return data
