"""Sites that fail, lie, hang or fall silent: named, not added, and the others are counted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import federations
import pytest
import site_services
import torch
from site_services import Alter, Clock, FaultyLink, Places

from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.engines.base import Outcome, collect
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.program.federation import Federation, federate

Table = tuple[Federation, Link, Federation]  # there, the line, and the same here
BAD = "south"
GOOD = ["north", "west"]


@pytest.fixture(scope="module")
def table(places: Places, site_images: Any) -> Table:
    """Three sites that have agreed to a run."""
    program = site_services.program(site_images, rounds={"quorum": 2, "rounds": 30})
    federation, link = places.meet(program)
    return federation, link, federate(program)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().rule(monkeypatch)


def order(federation: Federation, round: int = 1) -> Order:
    """Of a model that is sent: not the first one, which sites build themselves."""
    layout = federation.layout
    return Order(round, 0.9 * federation.initial[layout.travelling])


def engine(federation: Federation, link: Link) -> RemoteEngine:
    return RemoteEngine(federation, link, RunRecord({}, {}, lambda: 0))


def total(outcome: Outcome) -> torch.Tensor:
    return outcome.total.sums["delta"].total


def trained_here(here: Federation, order: Order, cohort: list[int]) -> Outcome:
    """The same round in this process."""
    with contextlib.closing(InProcessEngine(here)) as inline:
        return collect(inline, order, cohort)


def others_only(table: Table, outcome: Outcome, round: int = 1) -> None:
    """The bad site is named, and the sum is what it is without it."""
    here = table[2]
    assert [note.site for note in outcome.accepted] == GOOD
    assert list(outcome.rejected) == [BAD]
    assert f"'{BAD}'" in outcome.rejected[BAD]
    cohort = [client for client in range(3) if here.name(client) != BAD]
    expected = trained_here(here, order(here, round), cohort)
    assert torch.equal(total(outcome), total(expected))
    assert outcome.total.weight == expected.total.weight
    assert outcome.total.count == 2


def changed(**values: Any) -> Alter:
    """The site's reply to an order with other fields."""

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        fields = json.loads(text)
        if kind == "train" and "weight" in fields:
            text = json.dumps({**fields, **values})
        return text, data

    return alter


def answered(kind: str, text: Any = None, change: Callable[[bytes], Any] = bytes) -> Alter:
    """Another header (unless None) or body to all questions of a kind."""

    def alter(asked: str, header: Mapping[str, Any], said: str, data: bytes) -> tuple[Any, Any]:
        if asked != kind:
            return said, data
        return (said if text is None else text[0]), change(data)

    return alter


def value(number: float) -> Callable[[bytes], bytes]:
    """A body whose last number is another."""
    return lambda data: data[:-4] + bytes(messages.pack([torch.tensor([number])]))


FAULTS: dict[str, tuple[Alter, str]] = {
    "an old round": (changed(round=0), "answered for round 0 in round 1"),
    "a later round": (changed(round=2), "answered for round 2 in round 1"),
    "no round": (changed(round=None), "round = None"),
    "a negative weight": (changed(weight=-3), "weight = -3"),
    "an enormous weight": (changed(weight=2**60), "weight ="),
    "a true weight": (changed(weight=True), "weight = True"),
    "a fractional weight": (changed(weight=11.0), "weight = 11.0"),
    "no weight": (changed(weight=0), "gave its reply the weight 0, but its declaration implies 11"),
    "a larger weight": (
        changed(weight=12),
        "gave its reply the weight 12, but its declaration implies 11",
    ),
    "a NaN loss": (changed(metrics={"train_loss": [math.nan, 11]}), "not the finite sums"),
    "an infinite loss": (changed(metrics={"train_loss": [math.inf, 11]}), "not the finite sums"),
    "an enormous loss": (changed(metrics={"train_loss": [10**400, 11]}), "not the finite sums"),
    "a loss of nothing": (
        changed(metrics={"train_loss": [1.0, 0]}),
        "the training loss of no image",
    ),
    "many losses": (changed(metrics={"train_loss": [[1.0, 2.0], 11]}), "not the finite sums"),
    "another figure": (changed(metrics={"train_loss": [1.0, 11], "x": [1, 1]}), "not the finite"),
    "no figures": (changed(metrics=None), "not the finite sums"),
    "an error": (changed(error="the disk is full"), "the disk is full"),
    "an error of its own kind": (changed(error=["x"]), "an error that is not text"),
    "a ticket changed": (
        answered("train", ['{"ticket": 999, "done": false}']),
        "has expired",
    ),
    "NaN": (answered("fetch", change=value(math.nan)), "not finite"),
    "infinity": (answered("fetch", change=value(-math.inf)), "not finite"),
    "too large a number": (answered("fetch", change=value(1e30)), "64-bit range"),
    "a short piece": (answered("fetch", change=lambda data: data[:-4]), "bytes instead of"),
    "a long piece": (answered("fetch", change=lambda data: data + bytes(4)), "bytes instead of"),
    "an empty piece": (answered("fetch", change=lambda data: b""), "sent 0 bytes instead of"),
    "text for bytes": (
        answered("fetch", change=lambda data: "text"),
        "sent something other than bytes",
    ),
    "nothing for bytes": (
        answered("fetch", change=lambda data: None),
        "sent something other than bytes",
    ),
    "a number for a header": (answered("train", [5]), "a message without a valid header"),
    "no header": (answered("train", [None]), "a message without a valid header"),
    "half a header": (answered("train", ['{"done": tr']), "truncated or corrupt"),
    "a nest for a header": (answered("train", ["[" * 10**5]), "truncated or corrupt"),
    "not JSON": (answered("train", ["hello"]), "truncated or corrupt"),
    "no end": (answered("train", ['{"ticket": 1}']), "did not say whether it is done"),
    "a refusal of a piece": (answered("piece", ['{"error": "no"}']), "no"),
}


@pytest.mark.usefixtures("vectors_apart")
@pytest.mark.parametrize(("alter", "why"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_reply_is_named_and_the_others_are_counted(
    table: Table, clock: Clock, alter: Alter, why: str
) -> None:
    there, link, _ = table
    replies: list[None] = []
    outcome = collect(
        engine(there, FaultyLink(link, BAD, alter)),
        order(there),
        [0, 1, 2],
        lambda _: replies.append(None),
    )
    others_only(table, outcome)
    assert pytest.raises(SiteError, match=why).matches(SiteError(outcome.rejected[BAD]))
    assert len(replies) == 3


@pytest.mark.usefixtures("vectors_along")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (value(math.nan), "not finite"),
        (lambda data: data[:-4], "bytes instead of"),
        (lambda data: data + bytes(4), "bytes instead of"),
        (lambda data: b"", "sent 0 bytes instead of"),
        (lambda data: "text", "sent something other than bytes"),
    ],
    ids=["NaN", "short", "long", "empty", "text"],
)
def test_a_faulty_vector_that_comes_with_the_answer_is_named_likewise(
    table: Table, clock: Clock, change: Callable[[bytes], Any], why: str
) -> None:
    there, link, _ = table
    line = FaultyLink(link, BAD, answered("train", change=change))
    outcome = collect(engine(there, line), order(there), [0, 1, 2])
    others_only(table, outcome)
    assert why in outcome.rejected[BAD]
    assert {kind for _, kind in line.asked} == {"train"}, "one message for each site"


@pytest.mark.usefixtures("vectors_apart")
def test_a_broken_line_that_heals_costs_nothing(table: Table, clock: Clock) -> None:
    there, link, here = table
    failed: dict[str, int] = {}

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        failed[kind] = failed.get(kind, 0) + 1
        if failed[kind] <= 3:
            raise ConnectionError
        return text, data

    outcome = collect(engine(there, FaultyLink(link, BAD, alter)), order(there), [0, 1, 2])
    assert outcome.rejected == {}
    expected = trained_here(here, order(here), [0, 1, 2])
    assert torch.equal(total(outcome), total(expected))
    assert {"piece", "train", "fetch"} <= failed.keys()


def unplugged(*_: Any) -> Any:
    raise ConnectionError


def test_a_silent_site_is_given_up_and_not_asked_again(table: Table, clock: Clock) -> None:
    there, link, _ = table
    line = FaultyLink(link, BAD, unplugged)
    talking = engine(there, line)
    outcome = collect(talking, order(there), [0, 1, 2])
    others_only(table, outcome)
    assert "has stopped answering" in outcome.rejected[BAD]
    assert talking.present() == GOOD
    line.asked.clear()
    later = collect(talking, order(there, 2), [0, 1, 2])
    others_only(table, later, 2)
    assert "has stopped answering" in later.rejected[BAD]
    sums = talking.measure(order(there).vector, 2)
    owners = [there.name(view.site) for view in there.views if view.site is not None]
    assert {site for site, one in zip(owners, sums, strict=True) if one} == set(GOOD)
    assert BAD not in {site for site, _ in line.asked}


def test_a_site_that_is_not_connected_is_named(table: Table) -> None:
    there, link, _ = table
    talking = engine(there, replace_sites(link, GOOD))
    outcome = collect(talking, order(there), [0, 1, 2])
    others_only(table, outcome)
    assert outcome.rejected[BAD] == "site 'south' is not connected"


def replace_sites(link: Any, names: list[str]) -> Link:
    return replace(link, seats={name: link.seats[name] for name in names})


def test_a_deadline_that_passes_is_named(table: Table, clock: Clock) -> None:
    there, link, _ = table
    program = there.program
    short = replace(program, rounds=program.rounds.model_copy(update={"deadline": 60.0}))
    done = threading.Semaphore(0)

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind != "train":
            return text, data
        for _ in GOOD:  # the others are through, and then the time is
            done.acquire(timeout=60)
        clock.sleep(61)
        return '{"ticket": 1, "done": false}', b""

    outcome = collect(
        engine(replace(there, program=short), FaultyLink(link, BAD, alter)),
        order(there),
        [0, 1, 2],
        lambda _: done.release(),
    )
    others_only(table, outcome)
    assert "rounds.deadline" in outcome.rejected[BAD]


def test_a_round_closes_with_the_quorum_and_fails_below_it(table: Table, clock: Clock) -> None:
    there, link, _ = table
    line = FaultyLink(link, BAD, changed(weight=0))
    diary = federations.Diary()
    rounds = there.program.rounds.model_copy(update={"rounds": 3})
    site_services.learn(replace(there, program=replace(there.program, rounds=rounds)), line, diary)
    assert [line["sites"] for line in diary.lines] == [GOOD] * 3
    rounds = there.program.rounds.model_copy(update={"quorum": None})
    strict = replace(there, program=replace(there.program, rounds=rounds))
    with pytest.raises(SiteError, match=r"round 1 has 2 good replies of 3, .*'south'"):
        site_services.learn(strict, line)


@pytest.mark.usefixtures("vectors_apart")
@pytest.mark.parametrize("most", [1, 2])
def test_few_bytes_are_on_their_way_at_once(
    table: Table, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    there, link, _ = table
    size = 4 * there.sizes["delta"]
    monkeypatch.setattr(messages, "IN_FLIGHT", most * size)
    lock, now, seen = threading.Lock(), [0], []
    pause = threading.Event()

    class Counting(FaultyLink):
        def ask(self, site: str, kind: str, *words: Any) -> tuple[Any, Any]:
            if kind not in ("fetch", "piece"):
                return super().ask(site, kind, *words)
            with lock:
                now[0] += 1
                seen.append(now[0])
            pause.wait(0.1)  # long enough for the others to come, if they may
            try:
                return super().ask(site, kind, *words)
            finally:
                with lock:
                    now[0] -= 1

    outcome = collect(engine(there, Counting(link, "nobody", changed())), order(there), [0, 1, 2])
    assert len(outcome.accepted) == 3
    assert len(seen) == 6
    assert max(seen) <= most


MEASURED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda table: None,
    "a list": lambda table: [table],
    "NaN": lambda table: {"loss": [math.nan, 4], "confusion": [[[1.0]], 4]},
    "no figures": lambda table: {},
    "another shape": lambda table: {**table, "confusion": [[[4.0]], 4]},
    "another count": lambda table: {**table, "loss": [table["loss"][0], 99]},
    "another name": lambda table: {**table, "more": [1.0, 4]},
}


@pytest.mark.parametrize("change", MEASURED.values(), ids=MEASURED.keys())
def test_faulty_figures_are_left_out(table: Table, change: Callable[[dict[str, Any]], Any]) -> None:
    there, link, here = table

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        fields = json.loads(text)
        if kind == "measure" and "metrics" in fields and "weight" not in fields:
            text = json.dumps({**fields, "metrics": change(fields["metrics"])})
        return text, data

    vector = order(there).vector
    found = engine(there, FaultyLink(link, BAD, alter)).measure(vector, 0)
    with contextlib.closing(InProcessEngine(here)) as inline:
        expected = inline.measure(vector, 0)
    for view, one, due in zip(there.views, found, expected, strict=True):
        assert view.site is not None
        assert federations.same_sums([one], [{} if there.name(view.site) == BAD else due])
    assert math.isfinite(federations.overall(there)(found)["accuracy"])


def test_without_any_site_nothing_is_measured(table: Table) -> None:
    there, link, _ = table
    with pytest.raises(SiteError, match="no site is left to measure the model after round 7"):
        engine(there, replace_sites(link, [])).measure(order(there).vector, 7)


def trainer(places: Places) -> int:
    running = places.seats[BAD]._trainer
    assert running is not None
    return running._process.pid


def test_a_killed_trainer_is_the_sites_failure_and_the_next_round_works(
    table: Table, places: Places
) -> None:
    there, link, here = table

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind == "train":  # it is in the middle now, since it cannot get any further
            os.kill(trainer(places), signal.SIGKILL)
        return text, data

    os.kill(trainer(places), signal.SIGSTOP)
    outcome = collect(engine(there, FaultyLink(link, BAD, alter)), order(there, 11), [0, 1, 2])
    others_only(table, outcome, 11)
    assert "was killed by signal 9 while training in round 11" in outcome.rejected[BAD]
    after = collect(engine(there, link), order(there, 12), [0, 1, 2])
    expected = trained_here(here, order(here, 12), [0, 1, 2])
    assert after.rejected == {}
    assert torch.equal(total(after), total(expected))


def test_a_hanging_step_gives_way_to_the_next_order(
    table: Table, places: Places, clock: Clock
) -> None:
    there, link, here = table
    done = threading.Semaphore(0)

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind == "train" and header["round"] == 21:
            for _ in GOOD:
                done.acquire(timeout=60)
            clock.sleep(1e4)  # far beyond the deadline
        return text, data

    os.kill(trainer(places), signal.SIGSTOP)
    talking = engine(there, FaultyLink(link, BAD, alter))
    outcome = collect(talking, order(there, 21), [0, 1, 2], lambda _: done.release())
    others_only(table, outcome, 21)
    assert "rounds.deadline" in outcome.rejected[BAD]
    after = collect(talking, order(there, 22), [0, 1, 2])
    expected = trained_here(here, order(here, 22), [0, 1, 2])
    assert after.rejected == {}
    assert torch.equal(total(after), total(expected))
