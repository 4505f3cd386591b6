"""Queries of the brokers, and probes of those that do not answer."""

import re
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from imagegen_cli.doctor.fleet_checks import BrokerFacts, ConnectionResult, HttpFacts
from imagegen_client.sync import Client
from imagegen_protocol import BrokerUnreachableError, ImagegenError
from imagegen_protocol.endpoints import parse_endpoint
from imagegen_protocol.statistics import Statistics

_PROBE_SECONDS = 3.0
_MAX_TEXT_BYTES = 200


def query_brokers(
    endpoints: Sequence[str], timeout: float, key: Path | None, broker_key: Path | None
) -> list[BrokerFacts]:
    """Query the statistics of all brokers concurrently, for at most `timeout` seconds.

    Raises `KeyFileError` for invalid key files.
    """
    with ExitStack() as stack:
        queries: list[tuple[str, Future[Statistics]]] = []
        for endpoint in endpoints:
            client = Client(endpoint, connect_timeout=timeout, key=key, broker_key=broker_key)
            queries.append((endpoint, stack.enter_context(client).request_stats(timeout)))
        answers = [_answer(endpoint, future, timeout) for endpoint, future in queries]
    unanswered = [facts for facts in answers if facts.statistics is None and not facts.refusal]
    with ThreadPoolExecutor(max_workers=16) as pool:
        probed = {facts.endpoint: facts for facts in pool.map(lambda facts: probe(facts, timeout), unanswered)}
    return [probed.get(facts.endpoint, facts) for facts in answers]


def _answer(endpoint: str, future: "Future[Statistics]", timeout: float) -> BrokerFacts:
    try:
        return BrokerFacts(endpoint, future.result())
    except BrokerUnreachableError as error:
        return BrokerFacts(endpoint, seconds=timeout, suspicion=error.suspicions.get(endpoint, ""))
    except ImagegenError as error:
        return BrokerFacts(endpoint, refusal=error.message, code=error.code)


def probe(facts: BrokerFacts, timeout: float) -> BrokerFacts:
    """Connect to a broker that does not answer, and record the result."""
    connection, reason = _connect(facts.endpoint, min(timeout, _PROBE_SECONDS))
    return replace(facts, connection=connection, reason=reason)


def _connect(text: str, timeout: float) -> tuple[ConnectionResult, str]:
    endpoint = parse_endpoint(text)
    try:
        if endpoint.path:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(timeout)
                peer.connect(re.sub("^@", "\0", endpoint.path))  # ZeroMQ writes an abstract address with @
        else:
            socket.create_connection((endpoint.host, endpoint.port), timeout).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused", ""
    except socket.gaierror as error:
        return "unknown host", str(error.strerror)
    except OSError as error:
        return "unreachable", error.strerror or str(error)
    return "open", ""


def is_local_host(host: str) -> bool:
    """Return whether a host is this machine, that is, whether its address can be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe_socket:
            probe_socket.bind(address)
    except OSError:
        return False
    return True


def query_http(url: str, timeout: float) -> HttpFacts:
    """Request a URL of a broker or gateway, such as its `/healthz`."""
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return _http_facts(url, answer.status, answer)
    except HTTPError as error:
        with error:
            return _http_facts(url, error.code, error)
    except URLError as error:
        reason = error.reason
        return HttpFacts(url, reason=getattr(reason, "strerror", None) or str(reason))
    except (OSError, HTTPException, ValueError) as error:
        return HttpFacts(url, reason=str(error) or type(error).__name__)


def _http_facts(url: str, status: int, answer: HTTPResponse | HTTPError) -> HttpFacts:
    text = answer.read(_MAX_TEXT_BYTES).decode(errors="replace").strip()
    return HttpFacts(url, status, answer.headers.get("Server", ""), text=text)


def parse_http_address(text: str) -> str:
    """Return HOST:PORT of an address or URL. Raises `ValueError`."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ValueError(f"expected HOST:PORT or http://HOST:PORT, got {text!r}")
    return parts.netloc


def parse_url(text: str) -> str:
    """Return a URL of a gateway without a slash at its end; without a scheme, it is http. Raises `ValueError`."""
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected a URL such as http://127.0.0.1:8000, got {text!r}")
    return url.rstrip("/")
