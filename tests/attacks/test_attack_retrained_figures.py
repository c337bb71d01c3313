"""The same vector is measured again after the parameters that stay at the site were trained anew.

Exact figures that are computed again are the same, and `contract.evaluations` counts them once. Not
so where part of the model stays at the site (FedRep): the coordinator repeats the training of round
1 from another body, which makes another head, displaces the answer that is kept by a question about
round 2, and asks the question about round 1 once more, word for word. Each time it gets the figures
of another model, and the ledger counted none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.governance import ledger
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]
PERMITTED, REPETITIONS = 3, 6


def asked(attack: Attack, tmp_path: Path, algorithm: str) -> tuple[list[str], int]:
    """The different sets of figures about round 1 that leave; how many the ledger counts in all."""
    images = draw(tmp_path / "images", noise_images(12), noise_images(12, 9))
    site = attack("site", images, evaluations=PERMITTED, figures="exact")
    of = program(images, algorithm={"name": algorithm})
    assert "error" not in site.join(of)
    federation = known(of)
    vector = federation.initial[federation.layout.travelling]
    site.measure(vector, round=2)
    answers = []
    for number in range(REPETITIONS):
        other = vector + 0.5 * torch.randn(
            len(vector), generator=torch.Generator().manual_seed(number)
        )
        assert "error" not in site.train(other, round=1)[0]
        found = site.measure(vector, round=1, accepted=1)
        answers += [json.dumps(found["metrics"])] if "metrics" in found else []
        site.measure(vector, round=2)
    return sorted(set(answers)), Ledger(site.home).evaluations("images")


def test_each_training_gives_another_set_where_questions_are_counted(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_varies", lambda entry: entry.event is not None)
    found, counted = asked(attack, tmp_path, "fedrep")
    assert (len(found), counted) == (REPETITIONS, 2)


def test_ours_count_each_time_that_they_are_computed(attack: Attack, tmp_path: Path) -> None:
    found, counted = asked(attack, tmp_path, "fedrep")
    assert len(found) < counted == PERMITTED, "one of them is round 2's"


def test_figures_of_a_model_that_travels_whole_count_once(attack: Attack, tmp_path: Path) -> None:
    found, counted = asked(attack, tmp_path, "fedavg")
    assert (len(found), counted) == (1, 2)
