"""Says whether a daemon in this container is alive: exit status 0 or 1, for HEALTHCHECK.

python healthcheck.py PORT|FIRST-LAST...

One of the ports must answer /healthz with 200, and none that is open may answer otherwise.
"""

import sys
import urllib.error
import urllib.request

_SECONDS = 3.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(port: int) -> bool | None:
    """Return whether /healthz on a port of this host is well; None if the port is closed."""
    try:
        with _DIRECT.open(f"http://127.0.0.1:{port}/healthz", timeout=_SECONDS):
            return True
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ConnectionRefusedError) else False
    except OSError:
        return False


def ports(argument: str) -> range:
    """Return the ports that one argument names."""
    first, _, last = argument.partition("-")
    return range(int(first), int(last or first) + 1)


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    told = [answers(port) for argument in arguments for port in ports(argument)]
    return 0 if True in told and False not in told else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
