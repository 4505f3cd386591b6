"""Webhooks: fairness between keys, and failures of the database."""

import asyncio
import ipaddress
import socket
import sqlite3
import threading
from contextlib import asynccontextmanager

import pytest

from imagegen_gateway import webhooks
from imagegen_gateway.core.limits import Limits
from imagegen_gateway.database import open_database
from imagegen_gateway.jobs.store import JobStore
from imagegen_gateway.keys import ApiKeyStore
from imagegen_gateway.metrics import Metrics
from imagegen_gateway.webhooks import SLOTS_PER_KEY, WebhookSender

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@asynccontextmanager
async def receiver():
    """Serve webhooks; yield the address and a queue of the received requests."""
    received = asyncio.Queue()

    async def serve(reader, writer):
        received.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", received


class Sending:
    """A sender with its database."""

    def __init__(self, database):
        self.keys = ApiKeyStore(database)
        self.store = JobStore(database, 3600)
        self.metrics = Metrics()
        self.sender = None

    async def add_key(self, name):
        _, api_key = await self.keys.add(name, Limits(), 0.0)
        return api_key.id

    async def end_job(self, owner, url):
        """Store an ended job whose webhook is due."""
        job = await self.store.add(
            owner=owner,
            prompt="x",
            options={"seed": 1},
            inputs={},
            token="token",
            base_url="",
            fingerprint="",
            idempotency_key=None,
            webhook_url=url,
            now=0.0,
        )
        await self.store.finish(job.id, "succeeded", 0.0)

    def start(self):
        self.sender = WebhookSender(
            self.store,
            self.keys,
            self.metrics,
            lambda job: {"id": job.id},
            networks=LOOPBACK,
            attempts=3,
            retry_seconds=3600,
        )


@asynccontextmanager
async def sending(folder):
    """Open a database and a sender, which the test starts."""
    async with open_database(folder) as database:
        opened = Sending(database)
        yield opened
        if opened.sender is not None:
            await opened.sender.close()


@pytest.fixture
def blocked_names(monkeypatch):
    """Names that end in `.blocked` do not resolve before the event is set; yields it and a list of lookups."""
    released, lookups, resolve = threading.Event(), [], socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if isinstance(host, str) and host.endswith(".blocked"):
            lookups.append(host)
            released.wait(60)
            raise socket.gaierror("no such name")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield released, lookups
    released.set()


def test_names_that_do_not_resolve_delay_neither_other_keys_nor_other_work(tmp_path, blocked_names, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 0.05)
    released, lookups = blocked_names

    async def run():
        async with sending(tmp_path) as opened, receiver() as (address, received):
            alice, bob = await opened.add_key("alice"), await opened.add_key("bob")
            for number in range(40):
                await opened.end_job(alice, f"http://{number}.blocked/hook")
            opened.start()
            while len(lookups) < SLOTS_PER_KEY:
                await asyncio.sleep(0)
            await opened.end_job(bob, f"http://{address}/hook")
            opened.sender.wake()
            await received.get()
            assert await asyncio.to_thread(lambda: 7) == 7, "the shared threads are free"
            failed = opened.metrics.webhooks.labels(outcome="failed")
            while failed._value.get() < SLOTS_PER_KEY:
                await asyncio.sleep(0)
            await opened.end_job(bob, f"http://{address}/hook")
            opened.sender.wake()
            await received.get()  # the sender has looked for due webhooks since the failures
            assert len(lookups) == SLOTS_PER_KEY, "an attempt that timed out has its slot until its lookup ends"
            released.set()
            while len(lookups) < 40:
                await asyncio.sleep(0)

    asyncio.run(run())


def test_hanging_receivers_of_one_key_do_not_delay_other_keys(tmp_path):
    async def run():
        hanging = []

        async def hang(reader, writer):
            hanging.append(writer)
            await reader.read()
            writer.close()

        async with (
            sending(tmp_path) as opened,
            receiver() as (address, received),
            await asyncio.start_server(hang, "127.0.0.1", 0) as server,
        ):
            alice, bob = await opened.add_key("alice"), await opened.add_key("bob")
            port = server.sockets[0].getsockname()[1]
            for _ in range(200):
                await opened.end_job(alice, f"http://127.0.0.1:{port}/hook")
            await opened.end_job(bob, f"http://{address}/hook")
            opened.start()
            await received.get()
            assert len(hanging) <= SLOTS_PER_KEY
            await opened.sender.close()

    asyncio.run(run())


def failing_once(method):
    """Return a method that raises a database error at its first call."""
    calls = []

    async def fail_first(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return await method(*arguments)

    return fail_first


@pytest.mark.parametrize("method", ["due_webhooks", "next_webhook", "set_webhook"])
def test_webhooks_continue_after_an_error_of_the_database(tmp_path, monkeypatch, method):
    monkeypatch.setattr(webhooks, "RETRY_SECONDS", 0.01)

    async def run():
        async with sending(tmp_path) as opened, receiver() as (address, received):
            owner = await opened.add_key("alice")
            monkeypatch.setattr(opened.store, method, failing_once(getattr(opened.store, method)))
            await opened.end_job(owner, f"http://{address}/hook")
            opened.start()
            await received.get()
            while await opened.store.due_webhooks(1e10, 1):
                await asyncio.sleep(0)
            await opened.end_job(owner, f"http://{address}/hook")
            opened.sender.wake()
            await received.get()
            while await opened.store.due_webhooks(1e10, 1):
                await asyncio.sleep(0)
            assert received.empty(), "each webhook was sent once"

    asyncio.run(run())


def test_webhooks_continue_after_an_error_of_the_key_store(tmp_path, monkeypatch):
    monkeypatch.setattr(webhooks, "RETRY_SECONDS", 0.01)

    async def run():
        async with sending(tmp_path) as opened, receiver() as (address, received):
            owner = await opened.add_key("alice")
            monkeypatch.setattr(opened.keys, "by_id", failing_once(opened.keys.by_id))
            await opened.end_job(owner, f"http://{address}/hook")
            opened.start()
            await received.get()

    asyncio.run(run())
