"""A run that an operator asks for from another machine, with real processes: the server carries it,
and the sites find the operator's name on its jobs."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Loopback, program_of
from processes import DEPLOYED, wait_until

from fedsight.coordinator.store import to_toml
from fedsight.core.errors import DeployError
from fedsight.deploy.membership.operator_folder import OperatorFolder
from fedsight.deploy.server import remote_runs
from fedsight.deploy.server.looking import look, session_of
from fedsight.deploy.server.operator import LostError
from fedsight.deploy.server.remote_operator import Following, Request
from fedsight.governance.ledger import Ledger
from fedsight.runs import listing

SITES = ("site-00", "site-01")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A federation with two sites at work."""
    with contextlib.ExitStack() as stack:
        found = Loopback(tmp_path_factory.mktemp("federation"), 2, stack)
        found.start_server()
        for name in SITES:
            found.start_site(name)
        wait_until(lambda: all(found.alive(name) for name in SITES), DEPLOYED)
        yield found


def operator(made: Loopback, folder: Path, name: str, read_only: bool = False) -> OperatorFolder:
    """Another operator, who was admitted, in a folder of their own."""
    request = OperatorFolder.create(folder / name, name, made.federation.invitation, read_only)
    made.federation.add_operator(request, read_only)
    found = OperatorFolder.open(folder / name)
    found.install_kit()
    return found


def request(rounds: int, name: str, resume: str = "") -> Request:
    program, speed = program_of(2, rounds={"rounds": rounds})
    text = f'name = "{name}"\n' + to_toml(program, speed).partition("\n")[2]
    return Request(text, program.fingerprint, "en", resume)


def test_a_run_is_asked_for_followed_stopped_and_resumed_from_afar(
    made: Loopback, tmp_path: Path
) -> None:
    own = operator(made, tmp_path, "far@oslo.example")
    said: list[str] = []
    first = Following(own, request(1000, "far"), said.append)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(first.follow()))
    thread.start()

    folder = made.federation.runs / "far"
    wait_until(lambda: listing.look(folder).round >= 2, 4 * DEPLOYED)
    with session_of(own) as session:
        session.ask("stop", "far")
    thread.join(4 * DEPLOYED)
    assert codes == [130], "".join(said)
    assert "far" in "".join(said)
    done = listing.look(folder).round
    # The same program is not in another machine's hands: a program of other rounds is another one.
    with session_of(own) as session:
        wrong = request(3, "far", "far")
        session.ask("begin", json.dumps(vars(wrong)))
    (entry, *_) = [one for one in Ledger(made.sites["site-00"].folder).entries() if one.round == 1]
    assert entry.asked_by == (own.name,)
    short = Following(own, request(2, "short"), said.append)
    assert short.follow() == 0, "".join(said)
    runs = {run["name"]: run for run in look(own, "history")["runs"]}
    assert runs["short"]["state"] == "finished"
    assert runs["far"]["state"] == "stopped"
    assert runs["far"]["round"] == done
    events = [one for one in made.federation.events() if one["event"] == "asked"]
    assert {one["operator"] for one in events} == {own.name}
    assert [one["what"] for one in events] == ["run", "stop", "resume", "run"]
    assert not list((made.federation.folder / "remote").rglob("*.key"))


def test_who_may_only_read_asks_for_no_run(made: Loopback, tmp_path: Path) -> None:
    guest = operator(made, tmp_path, "guest@oslo.example", True)
    folder = made.federation.folder / remote_runs.PLACE
    before = sorted(folder.glob("*")) if folder.exists() else []
    with pytest.raises(DeployError, match="may look on") as caught:
        Following(guest, request(2, "none"), print).follow()
    assert not isinstance(caught.value, LostError)
    assert (sorted(folder.glob("*")) if folder.exists() else []) == before
