"""Questions that nobody waits for: each is charged, and one answer after the other is recorded.

A site does one piece of work at a time, and a new question abandons the one before. But what had
not begun yet stayed in the queue and was done all the same: a coordinator that asks thirty times
without waiting had a site charge thirty updates, keep busy with them, and record answers as having
left that nobody could fetch.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, InlineTrainer, draw, known, noise_images, program

from fedsight.deploy.site import trainer_holder
from fedsight.deploy.site.background import Background
from fedsight.deploy.site.service import ServiceAnswer
from fedsight.deploy.site.trainer import AbandonedError, TrainStep
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]
QUESTIONS = 8


class SlowTrainer(InlineTrainer):
    """Trains once it is let, unless it is closed before."""

    gate = threading.Event()

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self._closed = False

    def ask(self, command: Any, doing: str) -> Any:
        """The answer to a command."""
        if isinstance(command, TrainStep):
            self.gate.wait(60)
            if self._closed:
                raise AbandonedError(f"{doing} was abandoned for another request", "ask again")
        return super().ask(command, doing)

    def close(self) -> None:
        """As a process that is killed."""
        self._closed = True
        super().close()


@pytest.fixture
def site(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AttackedSite]:
    """A site in a run, whose trainers wait."""
    found = attack("site", draw(tmp_path / "images", noise_images(6)))
    monkeypatch.setattr(trainer_holder, "Trainer", SlowTrainer)
    SlowTrainer.gate = threading.Event()
    yield found
    SlowTrainer.gate.set()


def entries(site: AttackedSite) -> Counter[str]:
    """How many entries of each kind the ledger has of round 1."""
    return Counter(entry.kind for entry in Ledger(site.home).entries() if entry.round == 1)


def ask(site: AttackedSite, tmp_path: Path) -> tuple[Counter[str], list[str]]:
    """Ask again and again without waiting, but for the last time; what the ledger says then, and
    what those hear who ask about the questions before."""
    of = program(tmp_path / "images")
    assert "error" not in site.join(of)
    vector = known(of).initial
    begun = {"round": 1, "sites": 3, "accepted": 0, "durable": 0, "extras": {}, "mark": 0}
    tickets = []
    for number in range(QUESTIONS):
        header = {**begun, "attempt": number, "vector": site.send("vector", [vector + number])}
        text, _ = site.service.answer("train", json.dumps({**header, "quantiser": None}), b"")
        tickets.append(json.loads(text)["ticket"])
        while not entries(site)["update"]:
            time.sleep(0.01)  # the first has begun
    SlowTrainer.gate.set()
    assert site.ask("wait", {"ticket": tickets[-1]})[0]["done"]
    heard = [site.ask("wait", {"ticket": ticket})[0].get("error", "") for ticket in tickets]
    return entries(site), heard


def test_every_question_is_charged_where_work_that_was_abandoned_is_done(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Future, "cancel", lambda self: False)
    monkeypatch.setattr(Background, "_unless_abandoned", lambda self, ticket, do: do())
    found, _ = ask(site, tmp_path)
    assert found["update"] == QUESTIONS
    assert found["released"] == QUESTIONS - 1, "the first was interrupted"


def test_ours_does_what_had_begun_and_what_was_asked_last(
    site: AttackedSite, tmp_path: Path
) -> None:
    found, heard = ask(site, tmp_path)
    assert found == {"update": 2, "released": 1}
    assert heard == [*["this request has expired"] * (QUESTIONS - 1), ""]


def test_what_leaves_the_queue_just_before_it_is_abandoned_is_not_done_either(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Future, "cancel", lambda self: False)
    found, _ = ask(site, tmp_path)
    assert found == {"update": 2, "released": 1}


def test_who_waits_for_what_is_abandoned_hears_that_it_has_expired(
    site: AttackedSite, tmp_path: Path
) -> None:
    assert "error" not in site.join(program(tmp_path / "images"))
    told: list[dict[str, Any]] = []
    begun, gate = threading.Event(), threading.Event()

    def first() -> ServiceAnswer:
        begun.set()
        gate.wait(60)
        return {}, b""

    def wait(ticket: int) -> None:
        header = json.dumps({"ticket": ticket, "seconds": 30})
        told.append(json.loads(site.service.answer("wait", header, b"")[0]))

    site.service._background.start(("first",), first, {})
    begun.wait(60)
    second, _ = site.service._background.start(("second",), first, {})
    waiting = threading.Thread(target=wait, args=(second["ticket"],))
    waiting.start()
    site.service._background.start(("third",), first, {})
    waiting.join(60)
    gate.set()
    assert told == [{"error": "this request has expired", "cure": "send it again"}]
