"""Whole runs in about a second: images on disk, a config file, the command line in this process.

`launch` starts the command line in a process of its own that can be killed; it is forked from the
server that workers come from, so it has torch imported already.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import tomli_w
import typer

from fedsight.cli import main
from fedsight.cli.app import app
from fedsight.cli.language import OPTION
from fedsight.engines.pool import context
from fedsight.language.current import LANGUAGES, Language, environment_language

CLASSES, SIDE = 4, 8
PAGE = "fedsight.report.page"
SECTIONS: dict[str, Any] = {
    "data": {"name": "idx", "path": "images"},
    "split": {"name": "dirichlet", "sites": 3, "alpha": 1.0},
    "model": {"name": "small_cnn", "width": 4, "blocks": 1},
    "train": {"epochs": 1, "batch": 16, "lr": 0.05},
    "rounds": {"rounds": 2},
}


def write_images(folder: Path, train: int = 200, test: int = 60) -> None:
    """IDX files: the brightest quarter of an image is its class, in enough noise to take rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    half = SIDE // 2
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % CLASSES
        images = rng.integers(0, 200, (count, SIDE, SIDE))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 45
        _write_idx(folder / f"{part}-images-idx3-ubyte", images)
        _write_idx(folder / f"{part}-labels-idx1-ubyte", labels)


def _write_idx(path: Path, values: Any) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(
        f">{values.ndim}I", *values.shape
    )
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def write_config(folder: Path, name: str = "tiny", **sections: Any) -> Path:
    """A config file beside its images; a section given with a `name` replaces the usual one."""
    if not (folder / "images").exists():
        write_images(folder / "images")
    table: dict[str, Any] = {**SECTIONS}
    for section, values in sections.items():
        usual = {} if isinstance(values, dict) and "name" in values else table.get(section, {})
        table[section] = {**usual, **values} if isinstance(values, dict) else values
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(table))
    return path


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The output and the errors."""
        return self.out + self.err


class Reports:
    """Whether runs draw their reports, which takes them more time than training: conftest.py draws
    them for tests that look at one."""

    drawn = False


@contextlib.contextmanager
def _pages_of_runs(command: str = "") -> Iterator[None]:
    """Meanwhile, a command that trains writes an empty page, unless reports are drawn."""
    if Reports.drawn or command not in ("run", "compare", "sweep", "resume"):
        yield
        return
    before = sys.modules.get(PAGE)
    sys.modules[PAGE] = _empty_pages()
    try:
        yield
    finally:
        del sys.modules[PAGE]
        if before is not None:
            sys.modules[PAGE] = before


def _empty_pages() -> ModuleType:
    """What stands in for the module that builds pages, which imports for half a second."""

    def build(runs: Sequence[Path], out: Path | None = None) -> Path:
        page = out or Path(runs[0]) / "report.html"
        page.write_text("<!doctype html>\n")
        return page

    module = ModuleType(PAGE)
    module.build = build  # type: ignore[attr-defined]
    return module


@cache
def commands(language: Language = "en") -> Any:
    """The commands, which take longer to make and to translate than a command often takes. They
    are made for each language, as a translation stays in them."""
    return typer.main.get_command(app)


def _language(words: Sequence[str]) -> Language:
    """The language that the command line will choose."""
    for language in LANGUAGES:
        if f"{OPTION}={language}" in words or (OPTION, language) in pairwise(words):
            return language
    return environment_language(os.environ)


@contextlib.contextmanager
def _made_commands(words: Sequence[str]) -> Iterator[None]:
    """Meanwhile, the command line has the commands that were made before."""
    made = commands(_language(words))
    with mock.patch.object(typer.main, "get_command", return_value=made):
        yield


def cli(*arguments: object) -> Answer:
    """`fedsight ARGUMENTS` in this process, as a shell would see it."""
    out, err = io.StringIO(), io.StringIO()
    words = ["fedsight", *(str(argument) for argument in arguments)]
    code: Any = 0
    with (
        _pages_of_runs(*words[1:2]),
        _made_commands(words),
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return Answer(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Answer:
    """`fedsight ARGUMENTS`, which must succeed."""
    answer = cli(*arguments)
    assert answer.code == 0, answer.said
    return answer


def refused(code: int, *arguments: object) -> str:
    """`fedsight ARGUMENTS`, which must fail with `code` and one clear message; the message."""
    answer = cli(*arguments)
    assert answer.code == code, answer.said
    check_message(answer.err)
    return answer.err


def check_message(text: str) -> None:
    """One error with a cure below it, and no traceback."""
    assert "Traceback" not in text
    assert text.count("Error:") == 1
    lines = text[text.index("Error:") :].splitlines()
    assert len(lines) >= 2, "an error needs a cure"
    assert lines[1].startswith("  "), "an error needs a cure"


def read(run: Path, name: str = "summary.json") -> dict[str, Any]:
    """One of a run's JSON files."""
    return json.loads((run / name).read_text())


def figures(run: Path) -> dict[str, Any]:
    """The summary without what a clock measured."""
    return {key: value for key, value in read(run).items() if key != "seconds"}


def history(run: Path) -> list[dict[str, Any]]:
    """The rounds' lines without what a clock measured."""
    lines = (run / "history.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in lines
    ]


def same(one: Path, other: Path) -> None:
    """Assert that two run folders hold the same training, bit for bit."""
    assert history(one) == history(other)
    assert figures(one) == figures(other)
    for name in ("evaluation.json", "comparison.json"):
        if (one / name).exists() or (other / name).exists():
            assert read(one, name) == read(other, name)


class Launched:
    """The command line in a process that can be killed; what it prints goes to the file `said`."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        limit: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`limit`: the length in bytes beyond which the kernel writes no file of it."""
        self.said = folder / "said.txt"
        words = ["fedsight", *(str(argument) for argument in arguments)]
        given = (words, self.said, Path.cwd(), limit, environment or {})
        self.process = context().Process(target=_enter, args=given)
        self.process.start()

    def wait_until(self, ready: Callable[[], bool], why: str) -> None:
        """Wait until `ready()`; the process must still run then."""
        for _ in range(6000):
            if ready():
                return
            assert self.process.is_alive(), f"it ended before {why}: {self.said.read_text()}"
            time.sleep(0.005)
        raise AssertionError(f"after 30 s still not {why}")

    def kill(self, delay: float = 0.0, how: int = signal.SIGKILL) -> int:
        """Send the signal after `delay` seconds; the exit code."""
        time.sleep(delay)
        os.kill(self.process.pid or 0, how)
        self.process.join()
        return self.process.exitcode or 0


def lines(run: Path) -> int:
    """Whole lines of the history so far."""
    path = run / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _unmeasured() -> None:
    """What this process does is not counted as covered: Ctrl-C at a bad moment would leave the lock
    of `coverage` held, which its next line then waits for, for ever."""
    if (coverage := sys.modules.get("coverage")) and (found := coverage.Coverage.current()):
        found.stop()


def _enter(
    words: Sequence[str],
    said: Path,
    folder: Path,
    limit: int | None,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    # Its workers come from the server that it comes from itself, not from another one.
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    server.ensure_running = forkserver.ensure_running = lambda: None
    _unmeasured()
    sys.modules[PAGE] = _empty_pages()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a shell's child has it
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = list(words)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)  # for the figures of `coverage`
        sys.stdout.flush()
        sys.stderr.flush()


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file of the seeds' runs in a folder was last written, and its inode."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("seed-*/*")
        if path.is_file()
    }
