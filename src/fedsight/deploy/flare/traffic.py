"""What the server's TLS connections have carried for each site: handshakes, records, FLARE's own
messages, and everything of ours.

The kernel counts it (TCP_INFO: bytes received, and bytes sent that were acknowledged): the payload
of TCP, so headers of packets and repeated ones do not count.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.drivers.driver_params import DriverParams

from fedsight.deploy.membership.presence import TRAFFIC_FILE

INTERVAL = 1.0  # seconds between two writings of it
_ACKED, _END = 120, 136  # of bytes_acked and bytes_received in the kernel's struct tcp_info


class Meter:
    """Counts for the certified name at the other end of each connection, while the process lives.

    `run` says which process counted: numbers of another one begin at zero again.
    """

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._open: dict[int, tuple[str, Any, tuple[int, int]]] = {}  # by id of the connection
        self._ended: dict[str, tuple[int, int]] = {}

    @contextlib.contextmanager
    def watching(self, connection: Any) -> Iterator[None]:
        """Count a connection of FLARE's meanwhile; one without a certified name is not counted."""
        name = connection.get_conn_properties().get(DriverParams.PEER_CN.value)
        if not name or name == "N/A":
            yield
            return
        with self._lock:
            self._open[id(connection)] = str(name), connection.sock, (0, 0)
        try:
            yield
        finally:
            self.look(connection)
            with self._lock:
                _, _, carried = self._open.pop(id(connection))
                self._ended[str(name)] = _plus(self._ended.get(str(name), (0, 0)), carried)

    def look(self, connection: Any) -> None:
        """Take the numbers of a connection that is about to be closed."""
        with self._lock:
            if (known := self._open.get(id(connection))) is not None:
                name, sock, before = known
                self._open[id(connection)] = name, sock, _carried(sock, before)

    def totals(self) -> dict[str, tuple[int, int]]:
        """Bytes received from and sent to each name so far."""
        with self._lock:
            found = dict(self._ended)
            for key, (name, sock, before) in self._open.items():
                self._open[key] = name, sock, _carried(sock, before)
                found[name] = _plus(found.get(name, (0, 0)), self._open[key][2])
        return found

    def write(self, folder: Path) -> None:
        """Write the totals into `folder`."""
        path = folder / TRAFFIC_FILE
        partial = path.with_suffix(".partial")
        now = time.time()
        table = {"run": self.run, "time": now, "sites": self.totals()}
        try:
            partial.write_text(json.dumps(table), encoding="utf-8")
            partial.replace(path)  # no fsync: the next one comes soon
        except OSError:  # a full disk: the next time, perhaps
            with contextlib.suppress(OSError):
                path.touch()  # which needs no room: `health` goes by the time of the file

    def keep_writing(self, folder: Path) -> None:
        """Write the totals once a second, until the process ends."""

        def write() -> None:
            while True:
                self.write(folder)
                time.sleep(INTERVAL)

        threading.Thread(target=write, daemon=True, name="traffic").start()


def _carried(sock: Any, before: tuple[int, int]) -> tuple[int, int]:
    """Bytes received and sent; those of `before` if the socket is closed."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _END)
        sent, received = struct.unpack_from("=QQ", info, _ACKED)
    except (OSError, AttributeError, struct.error):  # closed, or not such a system
        return before
    return received, sent


def _plus(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
