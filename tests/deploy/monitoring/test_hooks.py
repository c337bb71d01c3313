"""Hooks: what is told arrives as JSON, and nothing that goes wrong with one holds anybody up."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import is_running, wait_until

from fedsight.deploy.monitoring import hooks as module
from fedsight.deploy.monitoring.hooks import Hooks
from fedsight.deploy.monitoring.look import Happened
from fedsight.deploy.monitoring.settings import HookSettings

WAIT = 30.0
PARTY = {"federation": "hospitals"}
HOSTILE = "$(touch owned); `touch owned`\n--flag \x1b[2J\u202e"


def script(folder: Path, body: str) -> tuple[str, ...]:
    path = folder / "hook.py"
    path.write_text(body)
    return sys.executable, str(path), "fixed"


def told(
    folder: Path, settings: HookSettings, *happened: Happened, known: dict[str, float] | None = None
) -> tuple[Hooks, list[tuple[str, str]]]:
    failures: list[tuple[str, str]] = []
    hooks = Hooks(settings, folder, PARTY, lambda *why: failures.append(why), known)
    for one in happened:
        hooks.tell(one)
    hooks.close()
    if settings.wanted:
        hooks._thread.join(WAIT)
    return hooks, failures


def test_a_command_gets_the_object_on_its_input_and_nothing_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "of the supervisor's")
    command = script(
        tmp_path,
        "import json, os, sys\n"
        "found = {'words': sys.argv[1:], 'environment': dict(os.environ)}\n"
        "found['object'] = json.load(sys.stdin)\n"
        "open('found.json', 'w').write(json.dumps(found))\n"
        "print('said')\n",
    )
    event = Happened("run_ended", HOSTILE, {"run": HOSTILE, "rounds": 3})
    hooks, failures = told(tmp_path, HookSettings(command=command), event)
    assert failures == []
    assert hooks.outcomes["delivered"] == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["words"] == ["fixed"]
    assert "A_SECRET" not in found["environment"]
    assert found["object"].pop("time")
    assert found["object"] == {
        "event": "run_ended",
        "federation": "hospitals",
        "run": HOSTILE,
        "rounds": 3,
    }
    assert not (tmp_path / "owned").exists()
    output = tmp_path / "hooks.txt"
    assert output.read_text() == "said\n"
    assert output.stat().st_mode & 0o077 == 0


def test_a_command_that_fails_hangs_or_is_gone_is_counted_and_said(tmp_path: Path) -> None:
    event = Happened("run_failed", "lungs", {"run": "lungs"})
    failing = HookSettings(command=script(tmp_path, "raise SystemExit(3)"))
    hooks, failures = told(tmp_path, failing, event)
    assert failures == [("run_failed", "the command ended with 3")]
    gone = HookSettings(command=("/nowhere/notify",))
    hooks, ((_, why),) = told(tmp_path, gone, event)
    assert "cannot be started" in why
    # It starts a process of its own, which would outlive it, and holds on to its input.
    hanging = script(
        tmp_path,
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n",
    )
    hooks, ((_, why),) = told(tmp_path, HookSettings(command=hanging, timeout=3.0), event)
    assert why == "the command took more than 3 s"
    assert hooks.outcomes["timeout"] == 1
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child), WAIT)


def test_telling_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are waiting behind one that hangs, who tells goes on at once."""
    monkeypatch.setattr(module, "CLOSING", 0.0)
    waiting = "import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    hanging = HookSettings(command=script(tmp_path, waiting), timeout=300.0)
    failures: list[tuple[str, str]] = []
    hooks = Hooks(hanging, tmp_path, PARTY, lambda *why: failures.append(why))
    for number in range(1000):
        hooks.tell(Happened("run_ended", str(number)))
    assert hooks.outcomes["dropped"] >= 1000 - module.MOST
    assert len(failures) == hooks.outcomes["dropped"]
    pid = tmp_path / "pid"
    wait_until(lambda: pid.is_file() and pid.read_text().endswith("\n"), WAIT)
    hooks._settings = HookSettings()  # nobody wants the others any more
    os.kill(int(pid.read_text()), signal.SIGKILL)
    wait_until(lambda: hooks._waiting.empty(), WAIT)
    hooks.close()
    hooks._thread.join(WAIT)


def test_who_comes_and_goes_is_told_of_once(tmp_path: Path) -> None:
    command = script(tmp_path, "open('count', 'a').write('x')")
    lost = [Happened("site_lost", "lyon"), Happened("site_lost", "oslo")] * 50
    near = [Happened("certificate_near_end", "server")] * 50
    runs = [Happened("run_ended", "lungs")] * 2  # it was resumed, and ended once more
    hooks, _ = told(tmp_path, HookSettings(command=command), *lost, *near, *runs)
    assert (tmp_path / "count").read_text() == "x" * 5
    # And not again after a restart.
    told(tmp_path, HookSettings(command=command), *lost, *near, known=hooks.told)
    assert (tmp_path / "count").read_text() == "x" * 5


def test_what_lasts_or_is_lost_is_told_however_many_runs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever coordinates chooses how often a run ends."""
    monkeypatch.setattr(module, "MAX_WAITING", 10_000)
    told_of = "json.load(sys.stdin)['event'][0]"
    command = script(tmp_path, f"import json, sys; open('t', 'a').write({told_of})")
    runs = [Happened("run_ended", str(number)) for number in range(module.MOST)]
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    last = [Happened("budget_near_end", "lungs"), Happened("server_lost")]
    hooks, failures = told(tmp_path, HookSettings(command=command), *runs, *last)
    assert (tmp_path / "t").read_text() == "rrrbs"
    assert len(failures) == hooks.outcomes["dropped"] == module.MOST - 3


def test_what_was_dropped_is_not_taken_for_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)  # nobody takes what waits
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    failures: list[tuple[str, str]] = []
    settings = HookSettings(url="https://alerts.example.org/")
    hooks = Hooks(settings, tmp_path, PARTY, lambda *why: failures.append(why))
    hooks.tell(Happened("server_lost"))
    near = Happened("certificate_near_end", "site")
    for _ in range(50):  # it is seen at each look
        hooks.tell(near)
    assert list(hooks.told) == ["server_lost "]
    assert [event for event, _ in failures] == ["certificate_near_end"], "said once in a while"
    hooks._waiting.get_nowait()
    hooks.tell(near)
    assert list(hooks.told) == ["server_lost ", "certificate_near_end site"]


def test_only_what_is_wanted_is_told(tmp_path: Path) -> None:
    command = script(tmp_path, "open('count', 'a').write('x')")
    wanted = HookSettings(command=command, events=("run_failed",))
    told(tmp_path, wanted, Happened("run_ended", "a"), Happened("run_failed", "b"))
    told(tmp_path, HookSettings(), Happened("run_failed", "b"))
    assert (tmp_path / "count").read_text() == "x"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted, and answers as its path says."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(int(self.path[1:4]))
        self.send_header("Location", "/200-elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.got = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "outcome"), [(204, "delivered"), (302, "failed"), (500, "failed")]
)
def test_a_web_hook_gets_the_object(tmp_path: Path, receiver: Any, code: int, outcome: str) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/{code}?key=a"
    event = Happened("site_lost", HOSTILE, {"site": HOSTILE})
    hooks, failures = told(tmp_path, HookSettings(url=url), event)
    assert hooks.outcomes[outcome] == 1
    assert bool(failures) == (outcome == "failed")
    ((path, kind, table),) = receiver.got  # a redirection is not followed
    assert (path, kind) == (f"/{code}?key=a", "application/json")
    assert (table["event"], table["site"]) == ("site_lost", HOSTILE)


def test_a_web_hook_that_answers_by_the_byte_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                while not over.wait(0.05):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        settings = HookSettings(url=url, timeout=0.5)
        hooks, ((event, why),) = told(tmp_path, settings, Happened("run_failed", "lungs"))
        over.set()
        thread.join()
    assert (event, why) == ("run_failed", "the web hook took more than 0.5 s")
    assert hooks.outcomes["timeout"] == 1


def test_nobody_there_is_a_failure(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        hooks, ((_, why),) = told(tmp_path, HookSettings(url=url), Happened("run_failed", "x"))
    assert "refused" in why
    assert hooks.outcomes["failed"] == 1
