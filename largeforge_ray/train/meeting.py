"""Where workers on several nodes meet: at the address by which Ray knows each node.

Gloo takes the address of the host's name, which many systems say is 127.0.1.1, so workers on other nodes find
nobody there. On one node it stays as it is, which is loopback on those systems.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any, cast

SIOCGIFADDR = 0x8915
"""Linux's request for an interface's IPv4 address."""
INTERFACE = "GLOO_SOCKET_IFNAME"


def torch_config(backend: str) -> Any:
    """Ray Train's ``TorchConfig``, whose workers first say where they are (read in Ray 2.60.0)."""
    from ray.train.torch import TorchConfig

    usual: Any = TorchConfig().backend_cls

    class AtNodes(usual):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            if len(set(worker_group.execute(_node_address))) > 1:
                worker_group.execute(_meet_there)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return AtNodes

    return Config(backend=backend)


def _node_address() -> str:
    import ray

    return str(cast(Any, ray).util.get_node_ip_address())


def _meet_there() -> None:
    name = interface_of(_node_address())
    if name is not None:
        os.environ.setdefault(INTERFACE, name)


def interface_of(address: str) -> str | None:
    """The name of the network interface that has an IPv4 address; None if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return None
