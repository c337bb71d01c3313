"""A site, or somebody with the certificate of one that was revoked, opens many connections.

Each may announce a frame of 16 MiB, which the server keeps until it is whole, and takes a thread
and an open file. No name has to be said for that: the certificate is enough.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from authorities import certificate_of_itself
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix

from fedsight.deploy.flare import addresses
from fedsight.deploy.flare.addresses import DualStackServer

PART = bytes(1 << 16)  # of a frame of a mebibyte


class Driver:
    """FLARE's driver: who is connected."""

    def __init__(self) -> None:
        self.changed, self.open = threading.Condition(), set[tuple[str, str]]()

    def add_connection(self, connection: Any) -> None:
        with self.changed:
            self.open.add(identity(connection))
            self.changed.notify_all()

    def close_connection(self, connection: Any) -> None:
        with self.changed:
            self.open.remove(identity(connection))
            self.changed.notify_all()

    def wait_for(self, name: str, wanted: Sequence[socket.socket]) -> bool:
        """Whether exactly these connections of a name are open, now or soon."""
        ends = {(name, ":".join(map(str, one.getsockname()))) for one in wanted}
        with self.changed:
            return self.changed.wait_for(lambda: ends == {o for o in self.open if o[0] == name}, 10)


def identity(connection: Any) -> tuple[str, str]:
    """Whose a connection is, and the address at its other end."""
    facts = connection.get_conn_properties()
    return facts["peer_cn"], facts["peer_addr"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """A server's listener, and the certificates of two sites."""
    pems = {}
    for name in ("mallory", "north"):
        (tmp_path / name).mkdir()
        pems[name] = Path(certificate_of_itself(tmp_path / name, name))
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(one.read_bytes() for one in pems.values()))
    own = str(pems["north"])
    params = {"scheme": "stcp", "host": "127.0.0.1", "port": "0", "secure": True}
    params |= {"ca_cert": str(both), "server_cert": own, "server_key": own}
    driver: Any = Driver()
    server = DualStackServer(driver, SimpleNamespace(params=params))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(pems=pems, both=both, driver=driver, address=server.socket.getsockname())
    server.shutdown()
    server.server_close()


def connect(served: Any, name: str) -> socket.socket:
    """A connection with the certificate of a site, on which a frame has begun."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(served.both)
    context.load_cert_chain(served.pems[name])
    found = context.wrap_socket(socket.create_connection(served.address, 10))
    head = bytearray(PREFIX_LEN)
    Prefix(length=1 << 20).to_buffer(head, 0)
    found.sendall(head + PART)
    return found


@pytest.mark.parametrize("weak", [True, False])
def test_one_name_has_a_few_connections_and_takes_none_from_others(
    served: Any, weak: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(addresses, "MAX_HELD", 1000 if weak else 4)
    north, opened = [connect(served, "north")], list[socket.socket]()
    try:
        for _ in range(20):
            opened.append(connect(served, "mallory"))
            # The newest are those that are left.
            assert served.driver.wait_for("mallory", opened if weak else opened[-4:])
        assert served.driver.wait_for("north", north)
        if not weak:
            opened[0].settimeout(10)
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # how it is told, TLS decides
                assert opened[0].recv(1) == b"", "it was not closed"
    finally:
        for one in (*north, *opened):
            one.close()
    assert served.driver.wait_for("mallory", [])
    assert served.driver.wait_for("north", [])
    said = [one.getMessage() for one in caplog.records if "the oldest first" in one.getMessage()]
    told = "closed {} connections of 'mallory', the oldest first: it had more than 4 at a time"
    assert said == ([] if weak else [told.format(count) for count in (1, 2, 4, 8, 16)])
