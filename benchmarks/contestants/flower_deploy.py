"""Contestant: rounds of a real Flower deployment on this machine, clients doing next to nothing.

One SuperLink with its state in memory and one SuperNode per site, each with the `subprocess`
isolation, talk over loopback without TLS, telemetry, update checks or installed dependencies.
`--tuned` shortens the two waits that Flower lets users choose: how often its SuperExecs look for
tasks, and how often the ServerApp looks for replies. The last line on stdout is JSON; memory is in
MiB, the sum of the highest resident sizes of the SuperLink and the ServerApp.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

APP = Path(__file__).resolve().parent / "flower_app"
BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
SUPEREXEC_POLL = 0.2  # seconds, with --tuned; Flower's default is 1
REPLY_POLL = 0.1  # seconds, with --tuned; Flower's `send_and_receive` has 3
GRACE = 10.0  # seconds the ServerApp has to report a timeout itself
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
DROPPED = ("FLWR_", "PYTHON", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
libc = ctypes.CDLL(None)


class DeploymentError(Exception):
    """The deployment did not start, or a round failed or took too long."""


class Deployment:
    """The processes of a Flower deployment, all below this one."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.report = folder / "report.jsonl"
        self.facts: list[dict[str, Any]] = []
        self.started = 0.0
        self.superlink_peak = 0  # KiB

    def run(self) -> None:
        """Start everything and follow it to the end of the last round. Raises DeploymentError."""
        options = self.options
        port, *node_ports = free_ports(1 + options.sites)
        self.started = time.monotonic()
        at = ("--host", LOOPBACK, "--port")
        self.start(
            "superlink",
            *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
            *(*at, str(port)),
        )
        self.await_health(port)
        for number, node_port in enumerate(node_ports):
            self.start(
                f"supernode-{number}",
                *("flower-supernode", "--insecure", "--superlink", f"{LOOPBACK}:{port}"),
                *(*at, str(node_port), "--node-config", f"partition-id={number}"),
            )
        self.submit(port)
        self.follow()

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start one of Flower's programs, with a home and a log of its own."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
        environment |= {
            "PATH": f"{BIN}{os.pathsep}{environment.get('PATH', os.defpath)}",
            "FLWR_HOME": str(home),
            "TMPDIR": str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        if self.options.tuned:
            environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(SUPEREXEC_POLL)
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / program), *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def submit(self, port: int) -> None:
        """Hand the app to the SuperLink, as users do."""
        options = self.options
        home = self.folder / "submit"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n'
            f'[superlink.here]\naddress = "{LOOPBACK}:{port}"\ninsecure = true\n'
        )
        config = {
            "sites": options.sites,
            "parameters": options.parameters,
            "rounds": options.rounds,
            "timeout": options.timeout,
            "pause": REPLY_POLL if options.tuned else 0.0,
            "report": json.dumps(str(self.report)),
        }
        settings = " ".join(f"{key}={value}" for key, value in config.items())
        self.start("submit", "flwr", "run", str(APP), "here", "--run-config", settings)

    def await_health(self, port: int) -> None:
        """Until the SuperLink answers. Raises DeploymentError."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                direct.open(f"http://{LOOPBACK}:{port}/health", timeout=5).close()
                return
            self.check(self.started, "the SuperLink did not answer")
            time.sleep(0.05)

    def follow(self) -> None:
        """Read the ServerApp's report until all rounds are done. Raises DeploymentError."""
        last = self.started
        while len(self.rounds()) < self.options.rounds:
            text = self.report.read_text() if self.report.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()
            if len(lines) > len(self.facts):
                self.facts = [json.loads(line) for line in lines]
                last = time.monotonic()
            for fact in self.facts:
                if "error" in fact:
                    raise DeploymentError(fact["error"])
            what = f"round {len(self.rounds()) + 1}" if self.facts else "the start of the run"
            self.check(last, f"{what} was not done")
            time.sleep(0.05)

    def check(self, since: float, what: str) -> None:
        """Raises DeploymentError if a process ended or it took too long."""
        for name, process in self.processes.items():
            if process.poll() not in (None, 0) or (name != "submit" and process.poll() == 0):
                lines = self.log(name).read_text(errors="replace").split("\n")
                said = next((line.strip() for line in reversed(lines) if line.strip()), "")
                raise DeploymentError(f"{name} ended with {process.returncode}: {said}")
        grace = GRACE if self.facts else 0.0
        if time.monotonic() - since > self.options.timeout + grace:
            raise DeploymentError(f"{what} within {self.options.timeout:g} s")

    def log(self, name: str) -> Path:
        """Where a process's output goes."""
        return self.folder / f"{name}.log"

    def rounds(self) -> list[dict[str, Any]]:
        """What the ServerApp said of each round."""
        return [fact for fact in self.facts if "seconds" in fact]

    def note_memory(self) -> None:
        """Remember the SuperLink's highest resident memory; call it before it ends."""
        process = self.processes.get("superlink")
        with contextlib.suppress(OSError, IndexError):
            if process is not None:
                status = Path(f"/proc/{process.pid}/status").read_text()
                self.superlink_peak = int(status.partition("VmHWM:")[2].split()[0])

    def result(self) -> dict[str, Any]:
        """What was measured."""
        options, rounds = self.options, self.rounds()
        serverapp = self.facts[-1]["peak"] if self.facts else 0
        return {
            "peer": "flower",
            "version": version("flwr"),
            "sites": options.sites,
            "parameters": options.parameters,
            "rounds": [round(each["seconds"], 3) for each in rounds],
            "start_to_first_round": round(rounds[0]["end"] - self.started, 3) if rounds else None,
            "memory_server_mb": round((self.superlink_peak + serverapp) / 1024, 1),
            "memory_superlink_mb": round(self.superlink_peak / 1024, 1),
            "memory_serverapp_mb": round(serverapp / 1024, 1),
            "tuned": options.tuned,
        }


def die_with_parent() -> None:
    """In a child, before it becomes Flower: end when this process is killed outright."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def descendants() -> list[int]:
    """The ids of all processes below this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def end_all() -> None:
    """End every process below this one, those that left its session too.

    Orphans come back to this process, which is their reaper: none gets away.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while below := descendants():
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def guard() -> None:
    """Go on in a child that outlives this process just long enough to end what it started.

    Benchmarks end a contestant that takes too long with SIGKILL, but part of Flower's processes
    leave its group, and some outlive their parent.
    """
    parent, child = os.getpid(), os.fork()
    if not child:
        os.setsid()
        for number in SIGNALS:
            signal.signal(number, lambda got, _: sys.exit(128 + got))
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
        return
    for number in SIGNALS:
        signal.signal(number, lambda got, _: os.kill(child, got))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300.0, help="for the start, and a round")
    parser.add_argument("--tuned", action="store_true", help="poll oftener than Flower does")
    parser.add_argument("--keep-logs", type=Path, help="a folder to copy the logs to")
    options = parser.parse_args()
    guard()
    error = None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        deployment = Deployment(Path(folder), options)
        try:
            deployment.run()
        except DeploymentError as caught:
            error = str(caught)
        finally:
            deployment.note_memory()
            end_all()
        if options.keep_logs:
            options.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in Path(folder).glob("*.log"):
                (options.keep_logs / log.name).write_bytes(log.read_bytes())
    print(json.dumps(deployment.result() | ({"error": error} if error else {})))


if __name__ == "__main__":
    main()
