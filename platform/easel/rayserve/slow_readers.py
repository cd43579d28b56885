"""Lets a reader that does not keep up hold back its own stream, instead of filling the kernel's buffers with it.

Behind HAProxy and in throughput mode the ingress replica's own uvicorn serves: `send` waits while the connection to
HAProxy takes nothing more, and the API then skips states of the canvas (`easel.api.unread`). But the kernel takes
megabytes before it says so: on loopback it gives each side of a connection several from the start, seconds of progress
that a slow reader would get long after it is of use (2026-11-23: a stream of 5.3 MB was sent whole, and not one of its
903 states skipped, before the client had read a byte). So the replica's side of each connection gets a small buffer
here; HAProxy's sides get theirs in `easel.rayserve.haproxy`.

Owns: that one socket option. Refuses to know: what is sent. With Serve's own proxy the replica's answer goes through
a queue without a bound instead, and nothing here helps: docs/api.md says so.
"""

from __future__ import annotations

import socket
from typing import Any

SEND_BUFFER = 64 * 1024
"""Bytes, of which the kernel counts twice as many. A canvas is one or two KB, a state of it up to 25 KB; what a fast
reader gets is not limited by it, since the reader is HAProxy on the same host."""


def keep_buffers_small() -> None:
    """To be called once in an ingress replica, before it serves. Calling it again changes nothing."""
    from uvicorn.protocols.http import h11_impl, httptools_impl

    for protocol in (h11_impl.H11Protocol, httptools_impl.HttpToolsProtocol):
        if not getattr(protocol.connection_made, "easel", False):
            _limit(protocol)


def _limit(protocol: Any) -> None:
    made = protocol.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        made(self, transport)

    connection_made.easel = True  # type: ignore[attr-defined]
    protocol.connection_made = connection_made
