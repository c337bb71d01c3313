"""A real federation that is watched while a run goes, and a site dies: who watches costs nobody
anything, sees it, and tells it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from loopback import Loopback
from processes import DEPLOYED, is_running, wait_until
from prometheus_client.parser import text_string_to_metric_families

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.deploy import demo
from fedsight.deploy.monitoring.metrics import METRICS, prefix
from fedsight.deploy.monitoring.settings import Side
from fedsight.deploy.server.server import free_port
from fedsight.governance.ledger import Ledger

Samples = dict[tuple[str, tuple[str, ...]], float]
HOOK = """\
import json, sys
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(json.load(sys.stdin)) + "\\n")
"""


def ask(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return ask(port, "/healthz")[0] == 200
    return False


def samples(side: Side, port: int) -> Samples:
    """Each metric with its label's value, read by Prometheus's own parser."""
    found: Samples = {}
    for family in text_string_to_metric_families(ask(port, "/metrics")[1].decode()):
        for one in family.samples:
            name = one.name.removeprefix(prefix(side))
            assert name in METRICS[side]
            found[name, tuple(one.labels.values())] = one.value
    return found


def lines(home: Path) -> list[dict[str, Any]]:
    """What a process has printed: nothing but JSON."""
    text = (home / demo.OUTPUT).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class After(Callback):
    """Does something when a round is over."""

    def __init__(self, round: int, do: Callable[[], None]) -> None:
        self._round, self._do = round, do

    def on(self, event: Event) -> None:
        """Called in `fedsight run`'s place: the coordinator goes on meanwhile."""
        if isinstance(event, RoundEnded) and event.line["round"] == self._round:
            self._do()


@contextlib.contextmanager
def scraping(*ports: int) -> Iterator[list[int]]:
    """Meanwhile all pages are asked for again and again; yields the codes of the answers."""
    codes: list[int] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.05):
            for port in ports:
                with contextlib.suppress(ConnectionError):  # to the process that is killed
                    codes.extend([ask(port, path)[0] for path in ("/healthz", "/metrics")])

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield codes
    finally:
        over.set()
        thread.join()


def monitor_of(process: int) -> int:
    """The monitoring process below a supervisor."""
    wait_until(lambda: bool(_monitors(process)), DEPLOYED)
    return _monitors(process)[0]


def _monitors(process: int) -> list[int]:
    found = []
    for child in psutil.Process(process).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("monitoring.process" in word for word in child.cmdline()):
                found.append(child.pid)
    return found


def test_a_run_is_watched_and_a_dead_site_is_told(tmp_path: Path) -> None:
    got, hook = tmp_path / "got.jsonl", tmp_path / "hook.py"
    hook.write_text(HOOK)
    server_port, site_port = free_port(), free_port()

    def told(event: str) -> list[dict[str, Any]]:
        found = map(json.loads, got.read_text().splitlines() if got.exists() else [])
        return [one for one in found if one["event"] == event]

    with contextlib.ExitStack() as stack:
        made = Loopback(tmp_path / "made", 2, stack, recognisers=True)
        homes = [site.folder for site in made.sites.values()]
        command = json.dumps([sys.executable, str(hook), str(got)])
        hooks = f"[hooks]\ncommand = {command}\nlost_after = 1.0\n"
        log = '[monitoring]\nlog = "json"\n'
        (made.federation.folder / "server.toml").write_text(log + hooks)
        (homes[0] / "site.toml").write_text(log + hooks)
        made.start_server("--metrics", str(server_port))
        made.start_site("site-00", "--metrics", str(site_port))
        made.start_site("site-01")
        demo.wait_for(made.federation, list(made.sites), made.running)
        wait_until(lambda: is_healthy(server_port) and is_healthy(site_port), DEPLOYED)
        held = monitor_of(made.running[homes[0]].pid)
        killed = monitor_of(made.running[made.server].pid)
        words = psutil.Process(killed).cmdline()  # every user can read them
        assert str(hook) not in " ".join(words)

        def die() -> None:
            os.kill(held, signal.SIGSTOP)  # whoever watches may stand still, or die
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: not is_running(killed), DEPLOYED)
            dead = made.running[homes[1]]
            dead.kill()
            dead.wait()
            wait_until(lambda: bool(told("site_lost")), DEPLOYED)
            assert samples("server", server_port)["site_up", ("site-01",)] == 0
            os.kill(held, signal.SIGCONT)
            wait_until(lambda: not made.process_left(homes[1]), DEPLOYED)
            made.start_site("site-01")

        rounds = {"rounds": 4, "evaluate_every": 4, "quorum": 1}
        with scraping(server_port) as codes:
            store = made.run("lungs", After(1, die), rounds=rounds)
        wait_until(lambda: any("how" in one for one in told("run_ended")), DEPLOYED)
        assert set(codes) <= {200}
        assert len(codes) > 20

        (lost,) = told("site_lost")
        assert (lost["site"], lost["federation"]) == ("site-01", demo.NAME)
        (ended,) = (one for one in told("run_ended") if "how" in one)  # a site tells it, too
        assert (ended["run"], ended["how"], ended["rounds"]) == ("lungs", "finished", 4)
        assert told("run_failed") == []

        wait_until(lambda: is_healthy(site_port), DEPLOYED)
        seen = samples("server", server_port)
        history = store.history()
        # Those of the process that was killed are gone with it: a counter begins again at zero.
        assert 0 < seen["rounds_total", ()] <= len(history)
        assert seen["runs_ended_total", ("finished",)] == 1
        assert seen["sites", ("ready",)] + seen["sites", ("absent",)] == 2
        assert seen["hooks_total", ("failed",)] == 0
        assert seen["bytes_total", ("received",)] > sum(line["bytes_up"] for line in history)
        assert seen["memory_bytes", ("engine",)] > 1 << 20
        assert seen["certificate_seconds", ("server",)] > 86400 * 800
        ledger = Ledger(homes[0])
        wait_until(
            lambda: samples("site", site_port)["ledger_entries", ()] == ledger.head[0], DEPLOYED
        )
        seen = samples("site", site_port)
        updates = [line for line in made.sites["site-00"].log.read() if line["event"] == "update"]
        assert seen["updates_total", ()] == len(updates)
        assert seen["updates_bytes_total", ()] == sum(line["bytes"] for line in updates)
        assert ("epsilon_spent", ("images",)) not in seen  # nothing is permitted or forbidden

        process = made.running[homes[0]]
        process.terminate()
        process.wait()
        wait_until(lambda: any(one["event"] == "site_left" for one in lines(made.server)), DEPLOYED)
        events = [one["event"] for one in lines(made.server)]
        assert {"started", "site_connected", "site_lost", "monitor_ended", "run_ended"} <= {*events}
        assert all({"time", "level", "event", "message"} <= {*one} for one in lines(made.server))
        said = lines(homes[0])
        rounds_said = [one["round"] for one in said if one["event"] == "update"]
        assert rounds_said == [line["round"] for line in history]
        assert all(one["site"] == "site-00" for one in said)
        images = json.loads((homes[0] / "declared.json").read_text())["train"]
        assert not any(str(images) in json.dumps(one) for one in said)
        names = ("log.jsonl", "trainer.txt", "delivery.txt", "messages.txt", "kit/log.txt")
        logs = [homes[0] / name for name in names]
        assert {path.stat().st_mode & 0o777 for path in logs} == {0o600}
