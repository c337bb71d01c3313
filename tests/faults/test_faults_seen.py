"""The table of docs/how-to/faults.md against a real federation: some of its faults are made, and
each sentence that the table has for them is seen. `benchmarks/faults.py` makes all of them."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import authorities
import pytest
from command_line import done
from loopback import Loopback, loopback
from processes import DEPLOYED, wait_until

from fedsight.console import site_view
from fedsight.core.errors import Interrupted
from fedsight.deploy import demo
from fedsight.deploy.site import state
from fedsight.runs.listing import control

SITE, OTHER = "site-01", "site-00"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "faults.md"


# What is another time, number or date in each federation, and all that follows it.
ELSEWHERE = r" hh:mm:ss|, which|\(\d|: \w+ -| in round \d+| on \d{4}-|; continuing"


class Row(NamedTuple):
    """What the table says that somebody sees."""

    place: str
    words: str  # the beginning of the line, without times and what follows


def rows(fault: str, where: str) -> list[Row]:
    """The rows of one fault."""
    found: list[Row] = []
    about = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 6:
            continue
        about = (cells[0], cells[1]) == (fault, where) if cells[0] else about
        seen = re.fullmatch(r"`fedsight ([\w ]+)`: (.*)", cells[3])
        if about and seen:
            told = re.sub(r"\\(.)", r"\1", seen[2])
            told = re.sub(r"^after round \d+: (round .* the first rejected: )?", "", told)
            found.append(Row(seen[1], re.split(ELSEWHERE, told)[0]))
    assert found, f"the table has no fault '{fault}' at a {where}"
    return found


class Seen:
    """What people see of the federation, for as long as its run goes on."""

    def __init__(self, made: Loopback, site: str = SITE) -> None:
        self.made, self.site, self.home = made, site, made.sites[site].folder

    @property
    def rounds(self) -> int:
        """How many have ended."""
        history = self.made.federation.runs / "seen" / "history.jsonl"
        return history.read_bytes().count(b"\n")

    def at(self, place: str) -> str:
        """What is to be seen there now."""
        where = self.made.federation.folder
        if place == "federation status":
            return " ".join(done("federation", "status", "--federation", where).out.split())
        if place == "site console":
            now = site_view.now(self.home)
            return f"{now.words}; drained" if now.drained else str(now.words)
        if place == "site start":
            return (self.home / demo.OUTPUT).read_text()
        if place == "server start":
            return (self.made.server / demo.OUTPUT).read_text()
        assert place == "run", place
        return "\n".join(self.made.said)

    def all_of(self, fault: str, where: str = "site", *, but: str = "") -> None:
        """Wait until everything is seen that the table has for a fault, `but` at one place."""
        for row in rows(fault, where):
            if row.place == but:
                continue
            words = row.words.replace(SITE, self.site)
            wait_until(lambda place=row.place, words=words: words in self.at(place), DEPLOYED)  # type: ignore[misc]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Two sites, and a run that goes on until it is told to stop."""
    with loopback(tmp_path_factory.mktemp("federation"), 2) as made:
        ended: list[BaseException] = []

        def run() -> None:
            try:
                # The run waits that long for a site before it ends.
                rounds = {"rounds": 100_000, "evaluate_every": 100_000, "deadline": 600.0}
                made.run("seen", rounds=rounds, train={"steps": 2})
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        history = made.federation.runs / "seen" / "history.jsonl"
        wait_until(history.exists, DEPLOYED)
        try:
            yield Seen(made)
        finally:
            control(made.federation.runs / "seen", "stop")
            thread.join()
        assert isinstance(ended[0], Interrupted)


def suspended(process: int) -> None:
    os.kill(process, signal.SIGSTOP)


def goes_on(seen: Seen, process: int, told: str) -> None:
    """The process goes on, which is told, too."""
    seen.made.said.clear()
    os.kill(process, signal.SIGCONT)
    wait_until(lambda: told in seen.made.said, DEPLOYED)


def the_process(seen: Seen, home: Path, role: str) -> int:
    wait_until(lambda: seen.made.process(home, role) is not None, DEPLOYED)
    found = seen.made.process(home, role)
    assert found is not None
    return int(found.pid)


def test_a_suspended_job_of_a_site(seen: Seen) -> None:
    process = the_process(seen, seen.home, "job")
    suspended(process)
    seen.all_of("its job's process suspended")
    goes_on(seen, process, f"site '{SITE}' is there again")


def test_a_suspended_trainer(seen: Seen) -> None:
    process = the_process(seen, seen.home, "trainer")
    suspended(process)
    seen.all_of("its trainer suspended")
    goes_on(seen, process, f"site '{SITE}' is there again")


def test_a_trainer_that_is_killed(seen: Seen) -> None:
    os.kill(the_process(seen, seen.home, "trainer"), signal.SIGKILL)
    seen.all_of("its trainer killed, or out of memory")


def test_a_certificate_that_has_ended_while_the_site_is_connected(seen: Seen) -> None:
    path = seen.made.federation.folder / "admitted" / f"{SITE}.crt"
    certificate = path.read_bytes()
    path.write_bytes(authorities.certify(SITE, "client", -1, begins=-9))
    seen.all_of("its certificate has ended, still connected", but="run")
    path.write_bytes(certificate)


def test_a_drained_site(seen: Seen) -> None:
    state.drain(seen.home, True)
    seen.all_of("drained by its owner")
    before = seen.rounds
    state.drain(seen.home, False)
    wait_until(lambda: seen.rounds > before + 1, DEPLOYED)


def test_a_suspended_server(seen: Seen) -> None:
    process = the_process(seen, seen.made.server, "parent")
    suspended(process)
    seen.all_of("its process suspended", "server")
    goes_on(seen, process, "the server runs again")


def test_a_suspended_site(seen: Seen) -> None:
    process = the_process(seen, seen.home, "parent")
    suspended(process)
    seen.all_of("its long-lived process suspended")
    assert "does not answer" not in seen.at("site start").rpartition("connected")[2]
    goes_on(seen, process, f"site '{SITE}' is there again")


def test_a_site_that_is_killed(seen: Seen) -> None:
    process = seen.made.running[seen.home]
    process.kill()
    process.wait()
    seen.all_of("killed, or its machine is down")
    assert "malicious" not in "\n".join(seen.made.said)


def test_a_site_that_is_revoked(seen: Seen) -> None:
    other = Seen(seen.made, OTHER)
    done("federation", "revoke", OTHER, "--federation", seen.made.federation.folder)
    other.all_of("revoked", but="run")  # which waits for the other site by now
