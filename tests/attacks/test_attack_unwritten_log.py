"""A site's log that cannot be written (a full disk, other permissions) is asked past.

No data leave without a line in the log. But a question asked again has a line only the 1st, 10th,
100th time, and these times were counted although nothing was written: the third of three equal
questions got an update of which no line tells. And where a failure has a line of its own, the
number of the question that was answered told whether training had failed, which a protected site
keeps to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from test_attack_errors import overflowing

from fedsight.core.errors import StoreError
from fedsight.deploy.site import service
from fedsight.deploy.site.answers import Answer
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.refusals import is_power_of_ten
from fedsight.deploy.site.release import Question, Release, describe
from fedsight.governance.charges import Charge

Attack = Callable[..., AttackedSite]
PROTECTED = {"require": ["local_dp"], "min_noise_multiplier": 8.0}
BRIGHT, OTHERWISE = 200, 150  # of one pixel; all others are below 100
QUESTIONS = 6


def noted_in_advance(self: Release, event: str, what: str, **facts: Any) -> None:
    times = self._times[event, what] = self._times[event, what] + 1
    if is_power_of_ten(times):
        self._log.write(event, what=what, **facts)


def again(self: Release, question: Question, charge: Charge, known: Answer) -> Answer:
    self._note("repeated", what=question.kind, **self._facts(question, known))
    return known


def reason(self: Release, doing: str, error: Exception) -> None:
    self._note("failed", what=doing, why=describe(error))


@pytest.fixture
def weakened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines count before they are written, and a failure needs one."""
    monkeypatch.setattr(Release, "_note", noted_in_advance)
    monkeypatch.setattr(Release, "_again", again)
    monkeypatch.setattr(Release, "_keep_reason", reason)
    monkeypatch.setattr(service, "StoreError", ZeroDivisionError)


def ask(site: AttackedSite, model: Any) -> list[bool]:
    """Which of some equal questions for an update and for figures are answered without a log."""
    site.train(model)  # so that the first of those that follow is no first one
    path = site.home / "log.jsonl"
    kept = path.read_text()
    path.unlink()
    path.mkdir()
    found = ["error" not in site.train(model, round=2)[0] for _ in range(QUESTIONS)]
    found += ["metrics" in site.measure(model, round=2) for _ in range(QUESTIONS)]
    path.rmdir()
    path.write_text(kept)
    return found


@pytest.fixture
def plain(attack: Attack, tmp_path: Path) -> AttackedSite:
    data = draw(tmp_path / "images", noise_images(8), noise_images(12, 1))
    of = program(data)
    site = attack("plain", data)
    assert "error" not in site.join(of)
    federation = known(of)
    site.model = federation.initial[federation.layout.travelling]  # type: ignore[attr-defined]
    return site


def failures(attack: Attack, root: Path) -> list[list[bool]]:
    """Which questions are answered by a site whose training fails, and by one where it does not."""
    answers = []
    for grey in (BRIGHT, OTHERWISE):
        found = noise_images(6)
        found[3][2, 5] = grey
        data = draw(root / str(grey), found)
        of = program(data, privacy={"name": "local", "noise_multiplier": 8.0})
        site = attack(f"site-{grey}", data, **PROTECTED)
        assert "error" not in site.join(of)
        answers.append(ask(site, overflowing(Model(known(of)), 175)))
    return answers


@pytest.mark.usefixtures("weakened")
def test_what_is_asked_again_leaves_without_a_line(plain: AttackedSite) -> None:
    assert ask(plain, plain.model) == 2 * [False, False, *(QUESTIONS - 2) * [True]]  # type: ignore[attr-defined]


def test_ours_lets_nothing_leave_without_a_line(plain: AttackedSite) -> None:
    model = plain.model  # type: ignore[attr-defined]
    assert ask(plain, model) == 2 * QUESTIONS * [False]
    assert "error" not in plain.train(model, round=2)[0], "the log can be written again"
    assert "metrics" in plain.measure(model, round=2)
    lines = [line for line in SiteLog(plain.home).read() if line["event"] == "repeated"]
    assert [(line["what"], line["round"]) for line in lines] == [("update", 2), ("figures", 2)]


@pytest.mark.usefixtures("weakened")
def test_the_first_answer_tells_whether_training_failed(attack: Attack, tmp_path: Path) -> None:
    failed, trained = failures(attack, tmp_path)
    assert failed != trained


def test_ours_answers_nothing_in_either_case(attack: Attack, tmp_path: Path) -> None:
    failed, trained = failures(attack, tmp_path)
    assert failed == trained == 2 * QUESTIONS * [False]


def test_a_line_that_was_not_written_is_due_again(tmp_path: Path) -> None:
    release = Release(None, None, None, None, SiteLog(tmp_path / "missing"))  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(StoreError, match="log cannot be written"):
            release._note("repeated", "update")
