"""Noised figures that are asked for again and again: the mean of the answers has little noise.

A site keeps the newest answer only. A coordinator that asks about two rounds in turn has each
computed again, with fresh noise. Where `contract.evaluations` counts questions, it gets
`contract.attempts` answers to each, and without epsilon nothing else limits them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.client.step import Client
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]
ANSWERS, PERMITTED = 100, 4


def of_questions(ledger: Ledger, data_set: str) -> int:
    """The weakened build: a question that is asked again is no further set of figures."""
    asked = [entry for entries in ledger._asked.values() for entry in entries]
    figures = [one for one in asked if (one.kind, one.data_set) == ("figures", data_set)]
    return len({entry.question for entry in figures})


def asked(attack: Attack, tmp_path: Path) -> tuple[list[Any], Any]:
    """The confusion matrices that leave, and the exact one."""
    images = draw(tmp_path / "images", noise_images(4), noise_images(12, 1))
    contract = {"figures": "noised", "figures_noise": 0.5, "evaluations": PERMITTED}
    site = attack("a", images, require=["secure_aggregation"], attempts=100, **contract)
    of = program(images, secure={"name": "secagg"})
    assert "error" not in site.join(of)
    federation = known(of)
    vector = federation.initial[federation.layout.travelling]
    answers = [site.measure(vector, round=1 + number % 2) for number in range(ANSWERS)]
    client = Client(federation)
    client.load(vector, {})
    exact = client.measure_all(federation.tested(federation.views[0]))["confusion"].total
    return [one["metrics"]["confusion"][0] for one in answers if "metrics" in one], exact


def test_the_mean_of_many_answers_is_exact_where_only_questions_are_counted(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "evaluations", of_questions)
    found, exact = asked(attack, tmp_path)
    assert len(found) == ANSWERS
    assert np.array_equal(np.rint(np.mean(found, axis=0)), exact)


def test_ours_count_every_set_that_leaves(attack: Attack, tmp_path: Path) -> None:
    found, _ = asked(attack, tmp_path)
    assert len({str(one) for one in found}) == PERMITTED, (
        "the latest answer is sent again as it was"
    )
