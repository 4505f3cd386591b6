"""Options of accepted connections."""

import asyncio
import socket

from imagegen_gateway.acceptor import Acceptor


def test_small_writes_are_sent_without_waiting_for_an_acknowledgement():
    async def scenario():
        connected = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                on_open()
                connected.set_result(transport.get_extra_info("socket"))

        def make_protocol(opened):
            nonlocal on_open
            on_open = opened
            return Protocol()

        on_open = None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            acceptor = Acceptor(listener, make_protocol, tls=None, connections=(), max_connections=1)
            _, writer = await asyncio.open_connection(*listener.getsockname())
            accepted = await connected
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            await acceptor.close()

    asyncio.run(scenario())
