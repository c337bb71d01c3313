"""A malicious site makes the coordinator allocate: it takes down its own answer, never the job.

`numpy.asarray` gives every text of a list the room of the longest one. A header of 12 MB, one text
of six million characters among a million empty ones, so asks for 24 terabytes, and the MemoryError
ended the job. Other answers are large when they are parsed (an empty object takes 64 bytes, its
text two), or fail in a way that no one foresaw.
"""

from __future__ import annotations

import contextlib
import json
import resource
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import site_services
import torch
from site_services import Alter, Clock, FaultyLink, Places

from fedsight.core.errors import EngineError, SiteError
from fedsight.core.types import Order, Sum
from fedsight.engines.base import Outcome, collect
from fedsight.engines.remote import conversation, messages
from fedsight.engines.remote.conversation import Link, Talk
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.program.federation import Federation

BAD = "south"
# One long text among many empty ones: 1.5 MB of JSON, and half a terabyte as an array.
BOMB: Any = ["x" * 1_000_000, *[""] * 130_000]
TEXT = json.dumps({"train_loss": [BOMB, 11]})


@pytest.fixture(scope="module")
def table(places: Places, site_images: Any) -> tuple[Federation, Link]:
    """Three sites that have agreed to a run which goes on with two."""
    return places.meet(site_services.program(site_images, rounds={"quorum": 2, "rounds": 30}))


@pytest.fixture
def scarce() -> Iterator[None]:
    """At most 64 GiB more than now, on a machine that would promise any amount of memory too."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().rule(monkeypatch)


def naive_read_metrics(table: Any, shapes: Any, sender: str) -> dict[str, Sum]:
    """As it was: the array tells what was sent."""
    sums = {}
    for name, (total, count) in table.items():
        values = np.asarray(total)
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise SiteError(f"{sender} sent figures that are not finite", "check it")
        sums[name] = Sum(values.astype(np.float64), count)
    return sums


def naive_converse(
    talks: list[Talk], one: Callable[[Talk], None]
) -> dict[str, SiteError | conversation.Silent]:
    """As it was: only errors that were foreseen are the site's."""
    failed: dict[str, SiteError | conversation.Silent] = {}
    for talk in talks:
        try:
            one(talk)
        except (SiteError, conversation.Silent) as error:
            failed[talk.site] = error
    return failed


def train(table: tuple[Federation, Link], alter: Alter) -> Outcome:
    """One round with a site whose answers are altered."""
    federation, link = table
    engine = RemoteEngine(federation, FaultyLink(link, BAD, alter), RunRecord({}, {}, lambda: 0))
    # Not of the first model, which sites build themselves.
    order = Order(1, 0.9 * federation.initial[federation.layout.travelling])
    return collect(engine, order, [0, 1, 2])


def bomb(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
    """The site's answer, with the texts for its training loss."""
    fields = json.loads(text)
    if "metrics" in fields:
        text = json.dumps({**fields, "metrics": json.loads(TEXT)})
    return text, data


@pytest.mark.usefixtures("scarce")
def test_the_array_of_texts_is_larger_than_any_memory() -> None:
    assert 4 * len(BOMB[0]) * len(BOMB) > 500e9  # bytes: four for each character
    with pytest.raises(MemoryError):
        naive_read_metrics(json.loads(TEXT), {}, "site 'south'")


@pytest.mark.usefixtures("scarce")
def test_without_the_checks_one_site_ends_the_job(
    table: tuple[Federation, Link], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "read_metrics", naive_read_metrics)
    monkeypatch.setattr("fedsight.engines.remote.engine.converse", naive_converse)
    with pytest.raises(MemoryError):
        train(table, bomb)


def rejected(outcome: Outcome) -> str:
    """Why the bad site was rejected; the others count."""
    assert list(outcome.rejected) == [BAD]
    assert outcome.total.count == 2
    assert f"'{BAD}'" in outcome.rejected[BAD]
    return outcome.rejected[BAD]


def test_the_bomb_is_refused_and_the_others_are_counted(
    table: tuple[Federation, Link], clock: Clock
) -> None:
    tracemalloc.start()
    outcome = train(table, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "not the finite sums" in rejected(outcome)
    assert peak < 100 << 20


@pytest.mark.usefixtures("scarce")
def test_a_memory_error_while_reading_rejects_the_site(
    table: tuple[Federation, Link], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a check were forgotten: the other half of the cure alone."""
    monkeypatch.setattr(messages, "read_metrics", naive_read_metrics)
    assert "cannot be read (" in rejected(train(table, bomb))


HOSTILE: dict[str, Any] = {
    "objects": "[" + "{}," * 600_000 + "{}]",
    "lists": "[" + "[]," * 600_000 + "[]]",
    "numbers": "[" + "1e9," * 500_000 + "0]",
    "keys": "{" + "".join(f'"{n}":0,' for n in range(150_000)) + '"":0}',
    "a long text": '"' + "x" * (60 << 20) + '"',
    "a wide text": '"' + "\U0001f600" * (15 << 20) + '"',
    "a deep list": "[" * 100_000 + "]" * 100_000,
    "a long number": "1" * 100_000,
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("field", ["metrics", "ticket", "done", "error", "cure", "round", "new"])
def test_no_header_takes_much_memory(value: str, field: str) -> None:
    text = f'{{"done": true, "{field}": {value}}}'
    tracemalloc.start()
    with contextlib.suppress(SiteError):
        messages.read_header(text, "site 'south'")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20


@pytest.mark.usefixtures("vectors_apart")
@pytest.mark.parametrize("kind", ["piece", "train", "wait", "fetch"])
@pytest.mark.parametrize("error", [MemoryError, RecursionError, AttributeError, OSError, KeyError])
def test_no_error_on_the_way_ends_the_job(
    table: tuple[Federation, Link], clock: Clock, kind: str, error: type[Exception]
) -> None:
    """For example FLARE's deserialisation of an answer."""

    def alter(asked: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if asked == kind:
            raise error("from the wire")
        return text, data

    outcome = train(table, alter)
    if kind != "wait" or outcome.rejected:  # a quick site is not waited for
        assert error.__name__ in rejected(outcome)


def test_an_update_that_is_half_added_ends_the_round(
    table: tuple[Federation, Link], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not count as a rejected one: the sum would hold what is not in the list of sites."""

    def add(self: Any, payload: Any, weight: int, site: str) -> None:
        raise MemoryError

    monkeypatch.setattr("fedsight.aggregation.mean.ExactMean.add", add)
    with pytest.raises(EngineError, match="could not be added"):
        train(table, lambda kind, header, text, data: (text, data))


def test_hostile_answers_leave_no_thread_that_works(
    table: tuple[Federation, Link], clock: Clock
) -> None:
    before = {thread.name for thread in threading.enumerate()}
    for _ in range(3):
        train(table, bomb)
    left = {thread.name for thread in threading.enumerate()} - before
    assert not {name for name in left if name.startswith(("talk", "ask-"))}


def test_the_sum_is_untouched_by_a_hostile_site(
    table: tuple[Federation, Link], clock: Clock
) -> None:
    quiet = train(table, bomb).total.sums["delta"].total.clone()  # type: ignore[attr-defined]
    other = train(table, lambda *_: ("[]", b""))
    assert torch.equal(quiet, other.total.sums["delta"].total)  # type: ignore[attr-defined]
