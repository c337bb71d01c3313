"""What TLS has carried for each site: counted by the kernel, kept over jobs, and reported."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from authorities import certificate_of_itself
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection

from fedsight.coordinator.callbacks import RoundEnded
from fedsight.coordinator.store import RunStore
from fedsight.deploy.flare.traffic import TRAFFIC_FILE, Meter
from fedsight.deploy.server.carried import COUNTED, Carried
from fedsight.report import view
from fedsight.report.read import read


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of the site north that vouches for itself, and its key."""
    return certificate_of_itself(tmp_path_factory.mktemp("certificate"), "north")


def context(path: Path, server: bool) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    found.check_hostname = False
    found.verify_mode = ssl.CERT_REQUIRED
    found.load_cert_chain(path)
    found.load_verify_locations(path)
    return found


class Relay:
    """A line between two sockets that counts every byte in both directions."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self.counts = [0, 0]
        for ends in ((0, one, other), (1, other, one)):
            threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, way: int, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):  # an end was closed
            while data := here.recv(1 << 16):
                self.counts[way] += len(data)
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)


def connected() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


@pytest.fixture
def line(certificate: Path) -> Iterator[Any]:
    """A TLS connection of the site north through a relay: its end, the server's, and the relay."""
    (site, near), (far, server) = connected(), connected()
    relay = Relay(near, far)
    ends: list[ssl.SSLSocket] = []

    def accept() -> None:
        ends.append(context(certificate, True).wrap_socket(server, server_side=True))

    accepting = threading.Thread(target=accept)
    accepting.start()
    client = context(certificate, False).wrap_socket(site)
    accepting.join()
    yield SimpleNamespace(site=client, server=ends[0], relay=relay)
    for one in (client, ends[0], near, far):
        one.close()


def test_what_is_counted_is_every_byte_of_the_line(line: Any) -> None:
    """Handshakes and records too: what a relay between the two ends has passed on."""
    meter, connection = Meter(), SocketConnection(line.server, SimpleNamespace(params={}), True)
    with meter.watching(connection):
        line.site.sendall(b"x" * 300_000)
        left = 300_000
        while left:
            left -= len(line.server.recv(left))
        line.server.sendall(b"y" * 100_000)
        left = 100_000
        while left:
            left -= len(line.site.recv(left))
        deadline = time.monotonic() + 10
        while meter.totals()["north"] != tuple(line.relay.counts) and time.monotonic() < deadline:
            time.sleep(0.01)  # until what was sent is acknowledged
        received, sent = meter.totals()["north"]
        assert [received, sent] == line.relay.counts
        assert 300_000 < received < 310_000
        assert 100_000 < sent < 110_000
    assert meter.totals() == {"north": (received, sent)}, "it still counts when it has ended"


def test_a_connection_that_was_closed_here_counts(line: Any) -> None:
    meter, connection = Meter(), SocketConnection(line.server, SimpleNamespace(params={}), True)
    with meter.watching(connection):
        line.site.sendall(b"x" * 1000)
        assert line.server.recv(1000) == b"x" * 1000
        meter.look(connection)
        connection.close()
    assert meter.totals()["north"][0] > 1000


def test_a_connection_without_a_certificate_is_not_counted() -> None:
    one, other = connected()
    meter, connection = Meter(), SocketConnection(other, SimpleNamespace(params={}), False)
    with meter.watching(connection), one, other:
        one.sendall(b"x")
        assert meter.totals() == {}


def test_the_totals_are_written_for_the_coordinator(line: Any, tmp_path: Path) -> None:
    meter, connection = Meter(), SocketConnection(line.server, SimpleNamespace(params={}), True)
    with meter.watching(connection):
        meter.write(tmp_path)
        table = json.loads((tmp_path / TRAFFIC_FILE).read_text())
        assert table["run"] == meter.run
        assert table["sites"]["north"][0] > 0
    assert TRAFFIC_FILE == COUNTED


def test_what_cannot_be_written_is_a_sign_of_life_still(tmp_path: Path) -> None:
    meter = Meter()
    meter.write(tmp_path)
    file = tmp_path / TRAFFIC_FILE
    before = file.read_text()
    os.utime(file, (0, 0))
    file.with_suffix(".partial").mkdir()  # which fails as a full disk does
    meter.write(tmp_path)
    assert file.read_text() == before
    assert time.time() - file.stat().st_mtime < 60


def said(folder: Path, run: str, **sites: list[int]) -> None:
    table = {"run": run, "time": time.time() + 60, "sites": sites}
    (folder / COUNTED).write_text(json.dumps(table))


def ended(last: bool = False) -> RoundEnded:
    return RoundEnded({"round": 1}, None, last)


def test_a_runs_jobs_add_up_also_over_a_restart_of_the_server(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.folder.mkdir()
    said(tmp_path, "first", north=[1000, 500], south=[70, 7], other=[9, 9])
    job = Carried(tmp_path, store, ["north", "south"])
    said(tmp_path, "first", north=[1500, 600], south=[70, 7], other=[99, 99])
    job.on(ended())
    job.on(ended(last=True))
    assert store.read_json(COUNTED) == {"sites": {"north": {"received": 500, "sent": 100}}}
    said(tmp_path, "second", north=[30, 20])
    job.write()
    assert store.read_json(COUNTED)["sites"]["north"] == {"received": 30, "sent": 20}
    later = Carried(tmp_path, store, ["north", "south"])
    said(tmp_path, "second", north=[34, 21], south=[5, 6])
    later.write()
    assert store.read_json(COUNTED)["sites"] == {
        "north": {"received": 34, "sent": 21},
        "south": {"received": 5, "sent": 6},
    }


def test_where_nothing_counts_nothing_is_written(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.folder.mkdir()
    Carried(tmp_path, store, ["north"]).on(ended(last=True))
    assert not (store.folder / COUNTED).exists()


def test_the_report_shows_it_by_site(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"name": "one"}))
    (folder / "history.jsonl").write_text(json.dumps({"round": 1, "bytes_up": 10}) + "\n")
    assert view.carried(read(folder)) == []
    sites = {"north": {"received": 2_000_000, "sent": 1000}, "south": {"received": 0, "sent": 500}}
    (folder / COUNTED).write_text(json.dumps({"sites": sites}))
    whole, each = map(str, view.carried(read(folder)))
    assert "2.0 MB up and 1.5 kB down" in whole.replace("\u00a0", " ").replace("\u202f", " ")
    assert "north" in each
    assert "south" in each


@pytest.mark.parametrize(
    "text",
    ["[]", "5", "{", '{"sites": 5}', '{"sites": {"north": {}}}', '{"sites": {"north": [1]}}', ""],
)
def test_files_that_are_none_end_no_job(tmp_path: Path, text: str) -> None:
    """Neither the server's nor the run's; a pipe is not waited for."""
    store = RunStore(tmp_path / "run")
    store.folder.mkdir()
    if text:
        (store.folder / COUNTED).write_text(text)
        (tmp_path / COUNTED).write_text(text)
    else:
        os.mkfifo(store.folder / COUNTED)
        os.mkfifo(tmp_path / COUNTED)
    job = Carried(tmp_path, store, ["north"])
    job.write()
    (tmp_path / COUNTED).unlink()
    said(tmp_path, "first", north=[30, 20])
    job.write()
    assert store.read_json(COUNTED) == {"sites": {"north": {"received": 30, "sent": 20}}}
