"""Buffered rounds in real time: the first replies count, the others go on, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
from federations import Diary, Stop
from site_services import Clock, FaultyLink, Places

from fedsight.coordinator.callbacks import Callback, Event, ReplyArrived, RoundEnded
from fedsight.coordinator.loop import Trained, run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint, RunStore, last_orders
from fedsight.core.errors import SiteError, StoreError
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.governance.ledger import Ledger
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program

SLOW = "south"
NEVER = math.inf
BUFFERED = {"rounds": 6, "mode": "buffered", "buffer": 2}
# The slow site answers in the middle of a later round.
TIMING = {"delay_seconds": 1.0, "groups": [{"sites": [SLOW], "delay_seconds": 3.5}]}


class Gate(Callback):
    """A link on which a site's reply to an order comes in the round that `when` names, by site and
    round of the order; others come at once. Those in `after` come only once another site's reply
    was taken in that round. As a callback it hears which round there is."""

    def __init__(
        self,
        link: Link,
        when: Mapping[tuple[str, int], float],
        round: float = 1,
        after: Mapping[tuple[str, int], str] | None = None,
    ) -> None:
        self._link, self._when, self._round, self._after = link, when, round, after or {}
        self._taken: set[str] = set()  # whose replies were taken in this round
        self._changed = threading.Condition()
        self._order: dict[str, int] = {}
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.training: set[str] = set()
        self.most = 0  # sites that trained at the same time

    @property
    def sites(self) -> list[str]:
        """Those of the link within."""
        return list(self._link.sites)

    def on(self, event: Event) -> None:
        """A reply was taken, or a round has ended."""
        if isinstance(event, ReplyArrived):
            with self._changed:
                self._taken.add(event.arrival.site)
                self._changed.notify_all()
        if isinstance(event, RoundEnded):
            self._now(event.line["round"] + 1)

    def close(self) -> None:
        """Nobody waits any more."""
        self._now(NEVER)

    def _now(self, round: float) -> None:
        with self._changed:
            self._round = round
            self._taken.clear()
            self._changed.notify_all()

    def _comes(self, site: str) -> bool:
        """Whether the site's reply has come."""
        asked = site, self._order[site]
        first = self._after.get(asked)
        in_turn = first is None or first in self._taken or self._round == NEVER
        return self._round >= self._when.get(asked, 0) and in_turn

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """One question and its answer, which may have to wait."""
        self.asked.append((site, kind, dict(header)))
        if kind == "train":
            self._order[site] = header["round"]
            self.training.add(site)
            self.most = max(self.most, len(self.training))
        answer = self._link.ask(site, kind, header, body, timeout)
        if kind in ("train", "wait") and json.loads(answer[0]).get("done"):
            with self._changed:
                self._changed.wait_for(lambda: self._comes(site))
            self.training.discard(site)
        return answer


def made(images: Path, timing: bool = False, **sections: Any) -> Program:
    rounds = {**BUFFERED, **sections.pop("rounds", {})}
    sections |= {"timing": TIMING} if timing else {}
    return site_services.program(images, rounds=rounds, **sections)


def learn(
    federation: Federation,
    gate: Gate,
    *callbacks: Callback,
    start: Checkpoint | None = None,
    record: RunRecord | None = None,
) -> Trained:
    """The run through the real loop."""
    engine = RemoteEngine(federation, gate, record or RunRecord({}, {}, lambda: 0))
    heard = [*callbacks, gate]
    with contextlib.closing(gate), contextlib.closing(engine):
        return run(Session(federation), engine, federations.overall(federation), heard, start)


def replayed(lines: list[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """In which round each reply counted, by site and round of the order; the last orders of all
    were never answered."""
    found: dict[tuple[str, int], float] = {}
    for line in lines:
        for site in line["sites"]:
            found[site, line["round"] - line["staleness"].get(site, 0)] = line["round"]
    return found


class Gated(dict[tuple[str, int], float]):
    """What is not in it never comes."""

    def get(self, key: Any, default: Any = None) -> float:
        """The round."""
        return super().get(key, NEVER)


def who(diary: Diary) -> list[tuple[list[str], dict[str, int]]]:
    return [(line["sites"], line["staleness"]) for line in diary.lines]


@pytest.fixture(scope="module")
def simulated(
    site_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Trained, Diary]]:
    """The run in virtual time, in this process."""

    def learnt(**sections: Any) -> tuple[Trained, Diary]:
        diary, here = Diary(), federate(made(site_images, timing=True, **sections))
        engine = InProcessEngine(here, tmp_path_factory.mktemp("memory"))
        return federations.learn(here, engine, diary), diary

    return learnt


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "fedbn"}},
        {"algorithm": {"name": "ditto"}, "codec": {"up": {"steps": ["float16"]}}},
        {"algorithm": {"name": "fedadam"}, "aggregation": {"name": "median"}},
    ],
    ids=["fedbn", "ditto, float16", "fedadam, median"],
)
def test_the_same_order_of_replies_gives_the_bits_of_the_simulation_also_after_a_restart(
    places: Places, site_images: Path, tmp_path: Path, simulated: Any, sections: dict[str, Any]
) -> None:
    """What a site remembered with a late reply is what it goes on from, once and only once."""
    sections = {"rounds": {"rounds": 10, "evaluate_every": 5}, **sections}
    expected, kept = simulated(**sections)
    # Its first reply has counted, its second will, and what it did then it did from the first.
    late = [line["round"] for line in kept.lines if line["staleness"].get(SLOW, 0) >= 2]
    assert late == [4, 8]
    program, diary = made(site_images, **sections), Diary()
    federation, link = places.meet(program)
    name, when = places.run, Gated(replayed(kept.lines))
    durable = lambda: min(6, len(diary.checkpoints))  # noqa: E731
    found = learn(federation, Gate(link, when), diary, record=RunRecord({}, {}, durable))
    assert who(diary) == who(kept)
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert federations.same_sums(found.sums, expected.sums)
    # The coordinator's disk is rounds behind when it comes back, the sites' memories are not.
    store = RunStore(tmp_path)
    store.save_checkpoint(diary.checkpoints[5])
    start, again = store.load_checkpoint(), Diary()
    assert start is not None
    assert start.under_way == {SLOW: 4}
    fresh = [SLOW] if sections["algorithm"]["name"] == "fedbn" else []
    federation, link = places.meet(program, places.sit(fresh), name)
    record = RunRecord({}, last_orders(diary.lines[:6]), lambda: 6)
    gate = Gate(link, when, 7)
    resumed = learn(federation, gate, again, start=start, record=record)
    assert who(again) == who(kept)[6:]
    assert federations.sha(resumed.vector) == federations.sha(expected.vector)
    assert federations.same_sums(resumed.sums, expected.sums)


def test_a_buffer_of_all_sites_equals_synchronous_rounds_bit_for_bit(
    places: Places, site_images: Path
) -> None:
    program = site_services.program(site_images, rounds={"rounds": 3})
    expected = federations.learn(federate(program))
    federation, link = places.meet(made(site_images, rounds={"rounds": 3, "buffer": 3}))
    diary = Diary()
    found = learn(federation, Gate(link, {}), diary)
    assert federations.sha(found.vector) == federations.sha(expected.vector)
    assert all(line["staleness"] == {} for line in diary.lines)


def test_a_site_that_never_answers_stops_nobody_and_is_not_interrupted_to_be_measured(
    places: Places, site_images: Path
) -> None:
    federation, link = places.meet(made(site_images))
    gate, diary = Gate(link, {(SLOW, 1): NEVER}), Diary()
    found = learn(federation, gate, diary)
    assert [line["sites"] for line in diary.lines] == [["north", "west"]] * 6
    assert all(line["rejected"] == {} for line in diary.lines)
    assert [line["bytes_down"] for line in diary.lines] == [
        n * 4 * federation.layout.travelling.stop
        for n in (0, 2, 2, 2, 2, 2)  # the first model is built at the sites
    ]
    for line, checkpoint in zip(diary.lines, diary.checkpoints, strict=True):
        assert set(line["reply_seconds"]) == {"north", "west"}
        assert checkpoint.under_way == {SLOW: 0}
        assert set(checkpoint.earlier) == {0}
    measured = [(site, header["round"]) for site, kind, header in gate.asked if kind == "measure"]
    assert [round for site, round in measured if site == SLOW] == [6]
    assert all(found.sums)
    assert sum(site == SLOW and kind == "train" for site, kind, _ in gate.asked) == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().rule(monkeypatch)


class Passing(Callback):
    """Time passes once two replies have come."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._replies = clock, 0

    def on(self, event: Event) -> None:
        """A reply has come."""
        self._replies += isinstance(event, ReplyArrived)
        if self._replies == 2:
            self._clock.sleep(700.0)


def test_a_site_has_its_deadline_for_each_order(
    places: Places, site_images: Path, clock: Clock
) -> None:
    rounds = {"rounds": 2, "buffer": 3, "quorum": 2, "deadline": 600.0}
    federation, link = places.meet(made(site_images, rounds=rounds))
    diary, first = Diary(), {(SLOW, 1): NEVER}
    learn(federation, Gate(link, first), diary, Passing(clock))
    assert [line["replies"] for line in diary.lines] == [2, 3]
    assert diary.lines[0]["rejected"] == {
        SLOW: "site 'south' did not answer within rounds.deadline"
    }


def test_a_reply_that_is_too_late_does_not_count_and_its_site_begins_again(
    places: Places, site_images: Path
) -> None:
    federation, link = places.meet(made(site_images, rounds={"max_staleness": 1}))
    when = {(SLOW, 1): 4, ("north", 5): NEVER, (SLOW, 4): 5}
    diary = Diary()
    learn(federation, Gate(link, when, after={("north", 4): SLOW}), diary)
    earlier = [set(checkpoint.earlier) for checkpoint in diary.checkpoints[:4]]
    assert earlier == [{0}, set(), set(), {3}]
    late = diary.lines[3]
    assert late["rejected"] == {SLOW: "its model was 3 rounds old, and rounds.max_staleness is 1"}
    assert late["sites"] == ["north", "west"]
    assert diary.lines[4]["sites"] == [SLOW, "west"]
    assert diary.lines[4]["staleness"] == {SLOW: 1}


def test_no_more_sites_train_at_a_time_than_the_cohort(places: Places, site_images: Path) -> None:
    rounds = {"rounds": 8, "buffer": 1, "cohort": 1}
    federation, link = places.meet(made(site_images, rounds=rounds))
    gate, diary = Gate(link, {}), Diary()
    learn(federation, gate, diary)
    assert gate.most == 1
    assert len({site for line in diary.lines for site in line["sites"]}) > 1


def broken(times: int) -> Any:
    """The first replies of a site weigh what they do not."""
    left = iter(range(times))

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        fields = json.loads(text)
        if kind == "train" and "weight" in fields and next(left, None) is not None:
            text = json.dumps({**fields, "weight": 999})
        return text, data

    return alter


def test_a_faulty_reply_is_named_and_the_next_ones_count(places: Places, site_images: Path) -> None:
    federation, link = places.meet(made(site_images, rounds={"rounds": 2, "buffer": 3}))
    diary = Diary()
    learn(federation, Gate(FaultyLink(link, SLOW, broken(1)), {}), diary)
    assert [line["replies"] for line in diary.lines] == [3, 3]  # it was asked once more
    with pytest.raises(SiteError, match=r"round 1 has 2 good replies of 3.*the weight 999"):
        learn(federation, Gate(FaultyLink(link, SLOW, broken(9)), {}))
    federation, link = places.meet(made(site_images, rounds={"rounds": 2}))
    diary = Diary()  # nobody waits for the slow one if the faulty one is fine the second time
    learn(federation, Gate(FaultyLink(link, SLOW, broken(1)), {("north", 1): 2}), diary)
    assert diary.lines[0]["sites"] == [SLOW, "west"]
    assert diary.lines[0]["rejected"] == {}


def test_a_silent_site_is_given_up_and_the_others_go_on(
    places: Places, site_images: Path, clock: Clock
) -> None:
    def unplugged(kind: str, header: Any, text: str, data: bytes) -> tuple[Any, Any]:
        if kind == "train":
            raise ConnectionError
        return text, data

    federation, link = places.meet(made(site_images, rounds={"rounds": 3, "evaluate_every": 3}))
    diary = Diary()
    gate = Gate(FaultyLink(link, SLOW, unplugged), {}, after={("north", 1): SLOW})
    learn(federation, gate, diary)
    assert [line["sites"] for line in diary.lines] == [["north", "west"]] * 3
    assert all("has stopped answering" in line["rejected"][SLOW] for line in diary.lines)
    assert sum(site == SLOW and kind == "measure" for site, kind, _ in gate.asked) == 0


def test_a_reply_that_a_dead_coordinator_never_took_is_charged_once_and_sent_as_it_was(
    places: Places, site_images: Path
) -> None:
    """It has fresh noise: a second one for the same order would halve it."""
    program = made(
        site_images,
        rounds={"rounds": 4, "weighting": "uniform"},
        privacy={"name": "example", "noise_multiplier": 1.0},
    )
    federation, link = places.meet(program)
    name, diary = places.run, Diary()
    with pytest.raises(KeyboardInterrupt):
        learn(federation, Gate(link, {(SLOW, 1): NEVER}), diary, Stop(2))
    start = diary.checkpoints[-1]
    assert start.under_way == {SLOW: 0}
    federation, link = places.meet(program, places.sit(), name)
    record = RunRecord({}, last_orders(diary.lines), lambda: 2)
    gate, again = Gate(link, {("north", 3): 4}, 3), Diary()
    learn(federation, gate, again, start=start, record=record)
    assert again.lines[0]["staleness"] == {SLOW: 2}
    entries = [one for one in Ledger(places.root / SLOW).entries() if one.run == name]
    asked = [one.round for one in entries if one.kind == "update"]
    assert asked[0] == 1
    assert len(asked) == len(set(asked))  # each order once, whoever asked how often
    sent = [one.sha256 for one in entries if one.kind == "released" and one.round == 1]
    assert len(set(sent)) == 1


def test_a_checkpoint_that_lacks_a_model_from_which_a_site_trains_is_refused(
    places: Places, site_images: Path, tmp_path: Path
) -> None:
    federation, link = places.meet(made(site_images, rounds={"rounds": 2}))
    diary, store = Diary(), RunStore(tmp_path)
    learn(federation, Gate(link, {(SLOW, 1): NEVER}), diary)
    found = diary.checkpoints[0]
    store.save_checkpoint(Checkpoint(1, found.vector, found.state, under_way=found.under_way))
    with pytest.raises(StoreError, match="from which a site still trains is missing"):
        store.load_checkpoint()
