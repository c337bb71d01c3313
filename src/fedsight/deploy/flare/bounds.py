"""What a process takes from the machine at the other end of a connection: bounds that FLARE lacks.

They hold in each process that has a connection: those of the server and the sites, which
`process.py` starts, and those of the operators' sessions, which a server answers.
"""

from __future__ import annotations

from types import ModuleType

from nvflare.fuel.f3.drivers import socket_conn

from fedsight.deploy.flare import addresses, decoding, streams

# Bytes that a connection may announce, and FLARE allocates at once; its own limit is 2 GiB. A chunk
# of a stream has 1 MiB, a heartbeat with its declaration as much.
MAX_FRAME = 16 << 20


def set_bounds() -> None:
    """Set them in this process; AttributeError if this version of FLARE has no such name."""
    replace(socket_conn, "MAX_FRAME_SIZE", MAX_FRAME)
    streams.bound_streams()
    decoding.bound_content()
    addresses.use_both_kinds()


def replace(module: ModuleType, name: str, value: object) -> None:
    """Replace something of FLARE's by its name; AttributeError if there is none."""
    getattr(module, name)
    setattr(module, name, value)
