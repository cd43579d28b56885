"""Keeps the one port on loopback that Serve binds to every interface whatever one says.

Owns: the address of a replica's server for calls between deployments. Refuses to know: everything else.

On one machine, all of Ray listens on 127.0.0.1 (see `easel.rayserve.session`), except that each Serve replica opens
its gRPC server at `[::]:0`. The token guards it, but a port that cannot be reached needs no guard. Serve 2.60 offers
no setting for it, so the name by which its replica module binds is replaced, in replicas of a local session only.
`tests/integration` checks with the operating system that nothing listens beyond loopback.
"""

from __future__ import annotations

import logging
import os
from typing import Any

logger = logging.getLogger("easel.loopback")

LOOPBACK_ENV = "EASEL_LOOPBACK"
"""Set to 1 in the processes of a local session."""

EVERYWHERE = "[::]:"
LOOPBACK = "127.0.0.1:"


def keep_on_loopback() -> None:
    """To be called while a replica is made: Serve binds right after. Does nothing outside a local session."""
    if os.environ.get(LOOPBACK_ENV) != "1":
        return
    from ray.serve._private import replica

    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        logger.warning("this version of Ray binds replica ports elsewhere; they may listen on every interface")
        return
    if getattr(bind, "easel", False):
        return

    def on_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace(EVERYWHERE, LOOPBACK))

    on_loopback.easel = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = on_loopback
