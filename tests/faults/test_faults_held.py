"""A real federation with a site whose owner approves each program by hand: runs wait for that, go
on without the site if they can, take it in once it is approved, and end where it is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from command_line import done
from consoles import served_site
from loopback import Loopback
from processes import DEPLOYED, wait_until

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.core.errors import Interrupted, RefusedError
from fedsight.deploy.membership import presence
from fedsight.deploy.site import approvals, state
from fedsight.governance.ledger import Ledger
from fedsight.runs.listing import control

HELD = "this program waits for the approval of the site's owner"
WAITING = "waiting for up to"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with ExitStack() as stack:
        made = Loopback(tmp_path_factory.mktemp("federation"), 2, stack)
        home = made.sites["site-00"].folder
        (home / "site.toml").write_text("[contract]\napproval = true\n")
        made.start()
        yield made


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """What it returns or raises, once the thread has ended."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def the_waiting(home: Path) -> str:
    """The fingerprint of the one program that waits, as the owner is shown it."""
    (one,) = json.loads(done("site", "programs", home, "--json").out)["waiting"]
    assert one["asked_by"] == ["operator@fedsight.local"]
    return str(one["fingerprint"])


def test_a_held_program_waits_is_approved_and_runs(two: Loopback) -> None:
    home = two.sites["site-00"].folder
    thread, found = in_thread(lambda: two.run("held"))
    wait_until(
        lambda: any(HELD in text and "waiting for up to" in text for text in two.said), DEPLOYED
    )
    assert Ledger(home).updates("run") == 0
    with served_site(home) as client:
        assert "connected" in client.get("/").text
        fingerprint = the_waiting(home)
        assert client.post(f"/program/{fingerprint}/approve").code == 303
        wait_until(lambda: state.jobs(home) != [] or not thread.is_alive(), DEPLOYED)
        thread.join()
        (store,) = found
        assert [line["sites"] for line in store.history()] == [["site-00", "site-01"]] * 2
        assert sum(HELD in text for text in two.said) == 1, "no job begins while it waits"
        assert "update" in client.get("/left").text
        assert store.read_json("run.json")["fingerprint"] == fingerprint
    kinds = [entry.kind for entry in Ledger(home).entries()]
    assert kinds.index("approved") < kinds.index("declaration")


class Approves(Callback):
    """Approves what waits after the first round, and stops the run once the site has joined."""

    def __init__(self, two: Loopback, home: Path) -> None:
        self._two, self._home = two, home
        self.sites: list[list[str]] = []

    def on(self, event: Event) -> None:
        """A round is done."""
        if not isinstance(event, RoundEnded):
            return
        self.sites.append(event.line["sites"])
        if len(self.sites) == 1:
            done("site", "approve", self._home, the_waiting(self._home))
        if len(event.line["sites"]) == 2:
            control(self._two.federation.runs / "quorum", "stop")


def test_with_a_quorum_others_begin_and_the_site_joins_once_it_is_approved(two: Loopback) -> None:
    home = two.sites["site-00"].folder
    two.said.clear()
    watch = Approves(two, home)
    with pytest.raises(Interrupted):
        two.run("quorum", watch, rounds={"rounds": 5000, "evaluate_every": 5000, "quorum": 1})
    assert watch.sites[0] == ["site-01"]
    assert ["site-00", "site-01"] in watch.sites
    assert any("going on without 'site-00'" in text and HELD in text for text in two.said)
    one = presence.presence(two.federation.presences, "site-00")
    assert one is not None
    assert one.decided == approvals.mark(home)


def test_a_run_ends_where_an_owner_refuses_its_program(two: Loopback) -> None:
    home = two.sites["site-00"].folder
    two.said.clear()
    thread, found = in_thread(lambda: two.run("refused", train={"lr": 0.01}))
    wait_until(lambda: any(WAITING in text for text in two.said), DEPLOYED)
    done("site", "refuse", home, the_waiting(home))
    thread.join()
    (error,) = found
    assert isinstance(error, RefusedError)
    assert "the site's owner has refused this program" in error.cause
