"""What the ingress does to its own server: the kernel keeps little of what is not read, and `send` waits."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
from uvicorn.protocols.http import h11_impl, httptools_impl

from easel.rayserve.slow_readers import SEND_BUFFER, keep_buffers_small
from tests.unit.api.edge import until

PART = b"x" * 16384
PARTS = 4000


@pytest.mark.parametrize("protocol", [h11_impl.H11Protocol, httptools_impl.HttpToolsProtocol])
async def test_sending_waits_for_a_reader_that_does_not_read(
    protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (h11_impl.H11Protocol, httptools_impl.HttpToolsProtocol):
        monkeypatch.setattr(each, "connection_made", each.connection_made)  # put back at the end
    keep_buffers_small()
    made = protocol.connection_made
    keep_buffers_small()
    assert protocol.connection_made is made
    sent = 0

    async def app(scope: object, receive: object, send: object) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        for _ in range(PARTS):
            await send({"type": "http.response.body", "body": PART, "more_body": True})  # type: ignore[operator]
            sent += 1
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http=protocol, timeout_graceful_shutdown=1)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.setblocking(False)
    await asyncio.get_running_loop().sock_connect(reader, listener.getsockname())
    await asyncio.get_running_loop().sock_sendall(reader, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    before = -1
    while sent != before or sent == 0:
        before = sent
        await asyncio.sleep(0.05)
    assert sent * len(PART) < 8 * SEND_BUFFER
    reader.close()
    server.should_exit = True
    await running
    listener.close()
