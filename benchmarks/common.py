"""What all benchmarks share: machine facts, contestants as processes, tables and JSON results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

import fedsight

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
OURS = Path(sys.executable)
PEERS = ROOT / ".venv-peers" / "bin" / "python"
TIDY = ("OMP_", "MKL_", "KMP_", "GOMP_", "RAY_", "FLWR_", "PFL_", "PYTHON", "MALLOC_", "LD_PRELOAD")


class ContestantError(Exception):
    """A contestant did not finish; the message holds the end of what it said."""


@dataclass
class Process:
    """How to start a contestant: its interpreter, script, arguments and extra environment."""

    python: Path
    script: Path
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()  # between the interpreter and the script

    def command(self) -> list[str]:
        """The command line."""
        return [str(self.python), *self.launcher, str(self.script), *self.arguments]


def run_contestant(
    process: Process, timeout: float, watch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Run a contestant in a process group of its own; its last line that is JSON.

    `watch` is called with the process id, which is also its session's, some fifty times a second
    while it runs. Whatever the contestant leaves running is ended with it. Raises ContestantError.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends the child
    environment = {k: v for k, v in os.environ.items() if not k.startswith(TIDY)}
    environment |= {"PYTHONPATH": str(ROOT / "src"), **process.environment}
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            process.command(),
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            _wait(child, timeout, watch)
        finally:
            _end(child)
        output.seek(0)
        text = output.read()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if child.returncode != 0 or not lines:
        how = f"exit code {child.returncode}" if child.returncode is not None else "no exit"
        raise ContestantError(f"{process.script.name}: {how}\n{text[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _wait(
    child: subprocess.Popen[str], timeout: float, watch: Callable[[int], None] | None
) -> None:
    if watch is None:
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ContestantError(f"{child.args!r}: not done after {timeout:.0f} s") from None
        return
    waited = 0.0
    while child.poll() is None:
        watch(child.pid)
        try:
            child.wait(pause := 0.02)
        except subprocess.TimeoutExpired:
            waited += pause
        if waited > timeout:
            raise ContestantError(f"{child.args!r}: not done after {timeout:.0f} s")


def _end(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@cache
def installed(python: Path, *packages: str) -> dict[str, str]:
    """Versions of `packages` in an interpreter's environment; {} if one of them is missing."""
    if python == OURS:
        try:
            return {name: version(name) for name in packages}
        except PackageNotFoundError:
            return {}
    code = "import sys, json, importlib.metadata as m; "
    code += "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    if not python.exists():
        return {}
    done = subprocess.run(
        [str(python), "-c", code, *packages], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else {}


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions and the load that others put on the machine now."""
    cpuinfo, meminfo = (_fields(Path("/proc") / name) for name in ("cpuinfo", "meminfo"))
    flags = set(cpuinfo.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": cpuinfo.get("model name", platform.processor()),
        "instructions": [name for name in wanted if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(meminfo.get("MemTotal", "0").split()[0]) / 2**20, 1),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": installed(OURS, "fedsight", "torch", "numpy"),
        "commit": _commit(),
    }


def others(seconds: float = 0.5) -> float:
    """Cores that other work keeps busy now; ask while no contestant runs."""
    before = _ticks()
    time.sleep(seconds)
    return (_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def await_quiet(patience: float, limit: float = 0.1) -> float:
    """Wait at most `patience` seconds until others leave the machine alone; what `others` said."""
    deadline = time.monotonic() + patience
    while (load := others()) > limit and time.monotonic() < deadline:
        time.sleep(1.0)
    return round(load, 2)


def _ticks() -> int:
    """Clock ticks that all cores were busy since the machine started (`proc_stat(5)`)."""
    counts = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(counts) - counts[3] - counts[4]


def _fields(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    found: dict[str, str] = {}
    for key, _, value in pairs:
        found.setdefault(key.strip(), value.strip())
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def example(name: str) -> dict[str, Any]:
    """A built-in example as a table."""
    file = resources.files("fedsight.program") / "examples" / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def once(place: Path, start: Callable[[], fedsight.Run]) -> fedsight.Run:
    """The run in the folder `place`: read if it is finished, continued if it was interrupted, and
    else what `start` makes there."""
    if (place / "summary.json").is_file():
        return fedsight.load(place)
    if (place / "run.toml").is_file():
        return fedsight.resume(place)
    return start()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a results file as a whole, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the terminal; the first column is left-aligned, the others right-aligned."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratios of measurements that were made next to one another."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range: `5.20 (5.01-5.33)`."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
