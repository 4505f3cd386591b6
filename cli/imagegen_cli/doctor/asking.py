"""Ask the brokers, all at once, and find out why one does not answer."""

import re
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from imagegen_cli.doctor.fleet import BrokerFacts, HttpFacts, Silence
from imagegen_client.sync import Client
from imagegen_protocol import BrokerUnreachableError, ImagegenError
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.statistics import Statistics

_PROBE_SECONDS = 3.0


def ask_brokers(
    endpoints: Sequence[str], timeout: float, key: Path | None, broker_key: Path | None
) -> list[BrokerFacts]:
    """Ask each broker for its statistics, for at most `timeout` seconds.

    Raises `KeyFileError` for key files that can't be used.
    """
    with ExitStack() as stack:
        asked: list[tuple[str, Future[Statistics]]] = []
        for endpoint in endpoints:
            client = Client(endpoint, connect_timeout=timeout, key=key, broker_key=broker_key)
            asked.append((endpoint, stack.enter_context(client).request_stats(timeout)))
        answers = [_answer(endpoint, future, timeout) for endpoint, future in asked]
    silent = [facts for facts in answers if facts.statistics is None and not facts.refusal]
    with ThreadPoolExecutor(max_workers=16) as pool:
        probed = {facts.endpoint: facts for facts in pool.map(lambda facts: probe(facts, timeout), silent)}
    return [probed.get(facts.endpoint, facts) for facts in answers]


def _answer(endpoint: str, future: "Future[Statistics]", timeout: float) -> BrokerFacts:
    try:
        return BrokerFacts(endpoint, future.result())
    except BrokerUnreachableError as error:
        return BrokerFacts(endpoint, seconds=timeout, suspicion=error.suspicions.get(endpoint, ""))
    except ImagegenError as error:
        return BrokerFacts(endpoint, refusal=error.message, code=error.code)


def probe(facts: BrokerFacts, timeout: float) -> BrokerFacts:
    """Connect to a broker that gives no answer, to find out why."""
    silence, reason = _connect(facts.endpoint, min(timeout, _PROBE_SECONDS))
    return replace(facts, silence=silence, reason=reason)


def _connect(text: str, timeout: float) -> tuple[Silence, str]:
    endpoint = parse_endpoint(text)
    try:
        if endpoint.path:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(timeout)
                peer.connect(re.sub("^@", "\0", endpoint.path))  # ZeroMQ's @ is an abstract address
        else:
            socket.create_connection((endpoint.host, endpoint.port), timeout).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused", ""
    except socket.gaierror as error:
        return "unknown host", str(error.strerror)
    except OSError as error:
        return "no way", error.strerror or str(error)
    return "open", ""


def is_here(host: str) -> bool:
    """Say whether a host is this machine: one can bind its address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe_socket:
            probe_socket.bind(address)
    except OSError:
        return False
    return True


def ask_http(address: str, timeout: float) -> HttpFacts:
    """Get `/healthz` of a broker's HTTP; `address`: HOST:PORT."""
    url = f"http://{address}/healthz"
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return HttpFacts(url, answer.status, answer.headers.get("Server", ""))
    except HTTPError as error:
        with error:
            return HttpFacts(url, error.code, error.headers.get("Server", ""))
    except URLError as error:
        reason = error.reason
        return HttpFacts(url, reason=getattr(reason, "strerror", None) or str(reason))
    except (OSError, HTTPException, ValueError) as error:
        return HttpFacts(url, reason=str(error) or type(error).__name__)


def http_address(text: str) -> str:
    """Return HOST:PORT of an address or an URL. Raises ValueError saying what one looks like."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ValueError(f"expected HOST:PORT or http://HOST:PORT, got {text!r}")
    return parts.netloc
