"""Real processes die in the middle of a run, and are started again; nobody has to do anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import Loopback, loopback, program_of
from processes import DEPLOYED, wait_until

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import Interrupted
from fedsight.deploy.site.delivery.received import Outcome, Received
from fedsight.inference import saved
from fedsight.runs import lifecycle
from fedsight.runs.listing import control, look

# Its sites have memory, which must neither get lost nor count twice.
SCAFFOLD = {"name": "scaffold"}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("federation"), 3, recognisers=True) as made:
        yield made


class Killer(Callback):
    """After each of the first rounds, kills the next one on its list."""

    def __init__(self, *kills: Callable[[], None]) -> None:
        self._kills = list(kills)
        self.rounds: list[int] = []

    def on(self, event: Event) -> None:
        """A round is done; another is in the middle."""
        if not isinstance(event, RoundEnded):
            return
        self.rounds.append(event.line["round"])
        if self._kills:
            self._kills.pop(0)()


def test_run_ends_with_the_same_bits_whoever_is_killed(three: Loopback, tmp_path: Path) -> None:
    sites = {name: site.folder for name, site in three.sites.items()}

    def whole_site() -> None:
        """The site's machine goes down, and its init system starts it again."""
        process = three.running[sites["site-02"]]
        process.kill()
        process.wait()
        wait_until(lambda: not three.process_left(sites["site-02"]), DEPLOYED)
        three.start_site("site-02")

    killer = Killer(
        lambda: three.kill(sites["site-00"], "trainer"),
        lambda: three.kill(sites["site-01"], "job"),
        whole_site,
        lambda: three.kill(three.server, "parent"),  # the coordinator's process goes with it
    )
    rounds = {"rounds": 6, "evaluate_every": 6}
    deployed = three.run("killed", killer, algorithm=SCAFFOLD, rounds=rounds)

    program, speed = program_of(3, algorithm=SCAFFOLD, rounds=rounds)
    embedded = RunStore(tmp_path / "run")
    lifecycle.start(lifecycle.Start(program, speed, embedded, "run"), [])
    ours, theirs = deployed.load_checkpoint(), embedded.load_checkpoint()
    assert ours is not None
    assert theirs is not None
    assert ours.vector.equal(theirs.vector)
    assert ours.state["control"].equal(theirs.state["control"])
    assert killer.rounds == list(range(1, 7))
    for site in three.sites.values():  # at most the round in progress was trained again
        trained = [line["round"] for line in site.log.read() if line["event"] == "update"]
        assert set(trained) == set(range(1, 7))
        assert max(trained.count(round) for round in set(trained)) <= 2


def test_every_site_makes_its_recogniser_whoever_is_killed(three: Loopback) -> None:
    homes = {name: site.folder for name, site in three.sites.items()}
    store = three.run("delivered", rounds={"rounds": 1, "evaluate_every": 1})
    assert store.read_json("received.json")["sites"] == sorted(homes)
    run, summary = store.read_json("run.json")["id"], store.read_json("summary.json")
    carried = store.read_json("traffic.json")["sites"]
    assert carried.keys() == homes.keys()
    for way, encoded in (("received", summary["bytes_up"]), ("sent", summary["bytes_down"])):
        assert sum(one[way] for one in carried.values()) > encoded

    def outcome(home: Path) -> Outcome | None:
        """What became of the model of this run."""
        received = Received(home)
        (key,) = (key for key in received.orders() if getattr(received.read(key), "run", "") == run)
        return received.outcome(key)

    # The machine of one site goes down while it chooses, or just before or after.
    process = three.running[homes["site-01"]]
    process.kill()
    process.wait()
    wait_until(lambda: not three.process_left(homes["site-01"]), DEPLOYED)
    three.start_site("site-01")
    for home in homes.values():
        wait_until(lambda home=home: outcome(home) is not None, DEPLOYED)  # type: ignore[misc]
        found = outcome(home)
        assert found is not None
        assert (found.state, found.why) == ("delivered", "")
        assert found.facts["held_out"] > 0
        assert saved.load(home / found.folder).fingerprint == store.program()[0].fingerprint


class Interrupter(Killer):
    """A killer that asks the run to stop when a site that was missing takes part again."""

    def __init__(self, site: str, run: Path, *kills: Callable[[], None]) -> None:
        super().__init__(*kills)
        self._site, self._run = site, run
        self._missed = False

    def on(self, event: Event) -> None:
        """A round is done, and possibly the last that is needed."""
        super().on(event)
        if isinstance(event, RoundEnded):
            there = self._site in event.line["sites"]
            if self._missed and there:
                control(self._run, "stop")
            self._missed = self._missed or not there


def test_round_closes_without_a_site_that_left_and_takes_it_in_again(three: Loopback) -> None:
    home = three.sites["site-01"].folder

    def leave() -> None:
        process = three.running[home]
        process.terminate()
        process.wait()

    # As many rounds as the site could need to be back, however slow the machine is.
    rounds = {"rounds": 1000, "evaluate_every": 1000, "quorum": 2}
    run = three.federation.runs / "left"
    killer = Interrupter("site-01", run, leave, lambda: None, lambda: three.start_site("site-01"))
    with pytest.raises(Interrupted, match="complete"):
        three.run("left", killer, rounds=rounds)
    assert look(run).asked is None
    lines = RunStore(three.federation.runs / "left").history()
    without = [line for line in lines if "site-01" not in line["sites"]]
    assert without
    assert all(line["sites"] == ["site-00", "site-02"] for line in without)
    assert all("site 'site-01'" in line["rejected"]["site-01"] for line in without)
    back = lines[lines.index(without[0]) :]
    assert any(len(line["sites"]) == 3 for line in back)
