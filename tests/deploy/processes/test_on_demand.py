"""The prefork process that exists only while jobs need it, and what does without it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import is_running, python_path, wait_until

from fedsight.core.errors import EngineError
from fedsight.deploy.processes import prefork, spawn, supervisor

# What a site or a server does without until a job comes.
LIGHT = """\
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""
SERVE = """\
import contextlib, sys
from fedsight.deploy import package
from fedsight.deploy.processes import on_demand, prefork
package.installed()
if sys.argv[1] == "changed":
    package.hash_of = lambda folder: "another"
with prefork.listening_socket() as listener:
    server = on_demand.PreforkOnDemand(listener, ["json"], kept=0.5)
    with contextlib.closing(server):
        print(server.address, flush=True)
        known = None
        while True:
            server.serve(0.05)
            if server.prefork != known:
                known = server.prefork
                print(known, flush=True)
"""


@contextlib.contextmanager
def serving(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str = "same"
) -> Iterator[list[str]]:
    """A process that serves requests on demand; what it prints about its prefork process."""
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, code],
            env={**os.environ, "PYTHONPATH": python_path(folder)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    monkeypatch.setenv(spawn.ADDRESS_VARIABLE, process.stdout.readline().strip())
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(map(str.strip, process.stdout or ())))
    reader.start()
    try:
        yield lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


@pytest.mark.parametrize(
    "modules",
    [
        ("fedsight.cli.app", "fedsight.deploy.site.folder", *supervisor.SITE_MODULES),
        ("fedsight.cli.app", "fedsight.deploy.server.server", *supervisor.SERVER_MODULES),
        ("fedsight.deploy.monitoring.keeper", "fedsight.deploy.site.delivery.maker"),
    ],
    ids=["site", "server", "what they poll"],
)
def test_a_process_that_waits_has_not_imported_pytorch(modules: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *modules], capture_output=True, text=True, check=True
    )
    assert "torch" not in done.stdout


def test_the_prefork_process_exists_while_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    (tmp_path / "ends.py").write_text("import sys; sys.exit(5)")
    with (
        serving(tmp_path, monkeypatch) as lines,
        (tmp_path / "output").open("wb") as output,
    ):
        time.sleep(0.3)
        assert lines == []  # nobody has asked
        one, two = (spawn.start("sleeps", [], output.fileno()) for _ in range(2))
        (serves,) = map(int, lines)
        assert spawn.start("ends", [], output.fileno()).wait() == 5
        time.sleep(1.0)  # twice as long as it stays when nobody needs it
        assert is_running(serves)
        one.kill()
        two.kill()
        wait_until(lambda: lines == [str(serves), "None"])
        assert spawn.start("ends", [], output.fileno()).wait() == 5  # from the next one
        assert int(lines[2]) != serves


def test_requested_processes_end_with_whoever_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    with serving(tmp_path, monkeypatch), (tmp_path / "output").open("wb") as output:
        process = spawn.start("sleeps", [], output.fileno())
    assert process.wait(10) < 0
    wait_until(lambda: not is_running(process.pid))


def test_code_that_was_replaced_meanwhile_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch, "changed"), (tmp_path / "output").open("wb") as output:
        for _ in range(2):
            with pytest.raises(EngineError, match="no process can be started here"):
                spawn.start("sleeps", [], output.fileno())
    assert "FedSight was replaced or changed" in (tmp_path / "errors").read_text()


def test_where_everything_is_imported_nothing_more_is_started() -> None:
    with prefork.listening_socket() as listener:
        made = supervisor._prefork_server(listener, ["json", "socket"])
        assert type(made) is prefork.PreforkServer
        made.close()
