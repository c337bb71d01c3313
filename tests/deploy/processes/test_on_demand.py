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
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.job_launcher_spec import JobReturnCode
from processes import is_running, python_path, wait_until

from fedsight.core.errors import EngineError
from fedsight.deploy.flare import launching
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
from fedsight.core import package
from fedsight.deploy.processes import on_demand, prefork
package.installed()
if sys.argv[1] == "changed":
    package.hash_of = lambda folder: "another"
if sys.argv[1] == "changed and put back":
    hashes = [package.installed().sha256, "another"]
    package.hash_of = lambda folder: hashes.pop() if len(hashes) > 1 else hashes[0]
def notify(text):
    print("told:", text, flush=True)
with prefork.listening_socket() as listener:
    server = on_demand.PreforkOnDemand(listener, [sys.argv[2]], notify, kept=0.5)
    with contextlib.closing(server):
        print(server.address, flush=True)
        known = None
        while True:
            server.serve(0.05)
            if server.prefork != known:
                known = server.prefork
                print(known, flush=True)
"""


# What is to be called first, in a fork that has imported what jobs need.
CALL = """\
import contextlib, os, sys
from fedsight.core.errors import FedSightError
from fedsight.core import package
from fedsight.deploy.processes import on_demand, prefork, spawn
def work():
    import threading
    threading.Thread(target=int).start()  # no fork of the prefork process has it
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), 9)
    if sys.argv[2] == "fails":
        raise FedSightError("the images are gone", "bring them back")
    return [name in sys.modules for name in ("heavy", "torch")], os.getppid(), os.getpid()
package.installed()
with prefork.listening_socket() as listener:
    with contextlib.closing(on_demand.PreforkOnDemand(listener, [sys.argv[1]], print)) as forks:
        try:
            imported, parent, own = forks.call(work)
        except FedSightError as error:
            print(type(error).__name__, " ".join(str(error).split()))
        else:
            print(imported, parent == forks.prefork != own, "heavy" in sys.modules)
            forks.serve(0.1)
            print(forks.prefork == parent)  # it stays for the first job
"""


@contextlib.contextmanager
def serving(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str = "same", module: str = "json"
) -> Iterator[list[str]]:
    """A process that serves requests on demand; what it prints about its prefork process."""
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, code, module],
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


def called(folder: Path, module: str, how: str) -> list[str]:
    """What the process prints that calls something before anybody has asked for a process."""
    (folder / "heavy.py").write_text("")
    (folder / "fatal.py").write_text("raise ImportError('no such thing')")
    done = subprocess.run(
        [sys.executable, "-c", CALL, module, how],
        env={**os.environ, "PYTHONPATH": python_path(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_first_call_leaves_a_prefork_process_for_the_first_job(tmp_path: Path) -> None:
    """So a site imports everything once to open its images and to start its first job."""
    assert called(tmp_path, "heavy", "works") == ["[True, False] True False", "True"]


@pytest.mark.parametrize(
    ("module", "how", "told"),
    [
        ("heavy", "fails", "FedSightError the images are gone"),
        ("heavy", "dies", "EngineError a process was killed by signal 9"),
        ("fatal", "works", "EngineError ImportError: no such thing"),
    ],
)
def test_a_first_call_that_fails_says_why(tmp_path: Path, module: str, how: str, told: str) -> None:
    (said,) = called(tmp_path, module, how)
    assert said.startswith(told)


def test_requested_processes_end_with_whoever_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    with serving(tmp_path, monkeypatch), (tmp_path / "output").open("wb") as output:
        process = spawn.start("sleeps", [], output.fileno())
    assert process.wait(10) < 0
    wait_until(lambda: not is_running(process.pid))


@pytest.mark.parametrize("code", ["changed", "changed and put back"])
def test_processes_say_that_code_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A site's process then refuses the run by name, as it does where it has run all the time."""
    checks = "from fedsight.core.package import require_unchanged; require_unchanged()"
    (tmp_path / "checks.py").write_text(checks)
    with serving(tmp_path, monkeypatch, code), (tmp_path / "output").open("wb") as output:
        assert spawn.start("checks", [], output.fileno()).wait() == 1
    assert "FedSight was replaced or changed" in (tmp_path / "output").read_text()


FATAL = {
    "raise ImportError('no such thing')": "ImportError: no such thing",
    "import sys; sys.exit(0)": "SystemExit: 0",
    "import os; os.kill(os.getpid(), 9)": "was killed by signal 9",
}


@pytest.mark.parametrize("how", FATAL)
def test_who_waits_for_a_process_that_cannot_be_is_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """All at once and with the reason, and nothing is tried again until somebody asks again."""
    (tmp_path / "fatal.py").write_text("import time; time.sleep(0.5)\n" + how)
    heard: list[str] = []

    def ask() -> None:
        with (
            (tmp_path / "output").open("ab") as output,
            pytest.raises(EngineError, match="no process can be started here") as told,
        ):
            spawn.start("json", [], output.fileno())
        heard.append(str(told.value))

    with serving(tmp_path, monkeypatch, module="fatal") as lines:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(FATAL[how] in text for text in heard)
        assert len(heard) == 3
        wait_until(lambda: lines[-1:] == ["None"])
        time.sleep(1.0)
        started = [line for line in lines if line.isdigit()]
        assert len(started) <= 2  # the last may have come too late for the first
        told = [line for line in lines if line.startswith("told: ")]
        assert len(told) == (len(started) if "killed" in FATAL[how] else 0)


def test_a_site_whose_job_cannot_be_started_answers_flare_as_if_it_had_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE ends a job for all sites if one answers its order to start with an error."""
    workspace = SimpleNamespace(get_app_custom_dir=lambda _: tmp_path / "no code")
    facts = {FLContextKey.WORKSPACE_OBJECT: workspace}
    context = SimpleNamespace(get_prop=facts.get)
    launcher: Any = launching.SiteLauncher()
    monkeypatch.setattr(launcher, "get_command", lambda *_: "python -u -m worker --once")
    monkeypatch.setenv(spawn.ADDRESS_VARIABLE, str(tmp_path / "nobody listens"))
    job = {JobMetaKey.JOB_ID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}
    handle = launcher.launch_job(job, context)
    handle.wait()
    handle.terminate()
    assert handle.poll() == JobReturnCode.EXECUTION_ERROR


def test_where_everything_is_imported_nothing_more_is_started() -> None:
    with prefork.listening_socket() as listener:
        made = supervisor._prefork_server(listener, ["json", "socket"], print)
        assert type(made) is prefork.PreforkServer
        made.close()
