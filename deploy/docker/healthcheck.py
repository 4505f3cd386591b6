"""Check whether a daemon in this container is alive, for HEALTHCHECK: exit status 0 or 1.

python healthcheck.py PORT|FIRST-LAST...

At least one port must answer /healthz with 200, and no open port may answer with another status.
"""

import sys
import urllib.error
import urllib.request

_SECONDS = 3.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(port: int) -> bool | None:
    """Return whether /healthz on a local port answers 200; None if the port is closed."""
    try:
        with _DIRECT.open(f"http://127.0.0.1:{port}/healthz", timeout=_SECONDS):
            return True
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ConnectionRefusedError) else False
    except OSError:
        return False


def ports(argument: str) -> range:
    """Return the ports of one argument."""
    first, _, last = argument.partition("-")
    return range(int(first), int(last or first) + 1)


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    results = [answers(port) for argument in arguments for port in ports(argument)]
    return 0 if True in results and False not in results else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
