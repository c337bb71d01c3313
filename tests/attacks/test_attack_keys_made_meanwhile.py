"""Keys for other sums over test images, made while a site adds up its own: one site's sums.

Keys are checked when a site is asked: they are to be for these very sums. A coordinator has new
ones made meanwhile, at all sites and for a model that knows nothing. The site masked its sums with
the newest keys, whatever they were for, so they came out with those of the others, which are known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import InlineTrainer
from masked_counts import ROUND, TESTS, Sites, draw, program, vector_of
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.deploy.site import secagg_client
from fedsight.deploy.site.secagg_client import Payload, SiteSecAgg, Sums
from fedsight.deploy.site.trainer import CalibrateStep
from fedsight.engines.remote import sums as asking
from fedsight.engines.remote.engine import RemoteEngine
from fedsight.engines.remote.models import Model
from fedsight.engines.remote.sums import SumQuestion
from fedsight.evaluation.trust.sums import CountSums, form, read
from fedsight.governance.contract import Contract
from fedsight.program.federation import Federation

TARGET, HEAT = "west", 1.0
RULE = Contract(figures="masked").sum_policy


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(draw(tmp_path / "images"), tmp_path / "sites", monkeypatch)
    for site in TESTS:
        made.owner(site, figures="masked", require=["secure_aggregation"])
    yield made
    made.close()


class Attacker:
    """Keys for sums of two models over all sites."""

    def __init__(self, sites: Sites, federation: Federation, engine: RemoteEngine) -> None:
        self.sites, self.federation, self.engine = sites, federation, engine

    def keys(self, vector: Tensor) -> asking._MaskedSum:
        """All sites make keys for the sums of this model."""
        question = SumQuestion(HEAT, form(CountSums, 3))
        tests = {site: 3 * images for site, images in TESTS.items()}
        model = Model(self.federation, ROUND, vector, None)
        attempt = asking._MaskedSum(model, question, tests, RULE)
        assert self.engine._exchange.begin(attempt.subject(self.federation), [*TESTS]) == {}
        return attempt

    def answer(self, site: str, vector: Tensor, attempt: asking._MaskedSum) -> bytearray:
        """A site's masked sums of a model."""
        told = {"temperature": HEAT, "integers": attempt.integers.table()}
        fields = self.sites.ask(site, vector, **told)
        assert "error" not in fields, fields
        piece = {"ticket": fields["ticket"], "start": 0, "stop": fields["bytes"]}
        return bytearray(self.sites.places.seats[site].answer("fetch", json.dumps(piece), b"")[1])

    def sum(self, vector: Tensor, patch: pytest.MonkeyPatch) -> Tensor:
        """The target's sums of a model, among the others' of one that knows nothing."""
        blank, asks = torch.zeros_like(vector), InlineTrainer.ask
        made: list[asking._MaskedSum] = []

        def meanwhile(trainer: InlineTrainer, command: Any, doing: str) -> Any:
            if isinstance(command, CalibrateStep) and not made:
                made.append(self.keys(blank))
            return asks(trainer, command, doing)

        patch.setattr(InlineTrainer, "ask", meanwhile)
        data = self.answer(TARGET, vector, self.keys(vector))
        (attempt,) = made
        attempt.add(TARGET, data)
        for site in TESTS:
            if site != TARGET:
                attempt.add(site, self.answer(site, blank, attempt))
        nothing = np.empty(0, np.uint32)
        self.engine._exchange.finish(attempt.accepted, nothing, attempt.words)
        return attempt.total()[1]


def masks_with_the_newest(self: SiteSecAgg, about: Sums) -> Callable[[Payload], bytes]:
    """Whatever keys there are once the sums are made, as it was."""
    masks(self, about)
    terms = about.table["terms"]
    integers = secagg_client.Integers.of(
        secagg_client._with_bounds(about.own, about.table, terms), terms
    )

    def protect(payload: Payload) -> bytes:
        words = integers.encode(payload, self._name)
        masker = self._recorded_masker(self._current_client())
        masker.mask(np.empty(0, np.uint32), words)
        return integers.pack(words)

    return protect


masks = SiteSecAgg.masked


@pytest.mark.parametrize("weak", [True, False])
def test_sums_come_out_among_those_of_others_of_which_all_is_known(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    """All scores of a model that knows nothing are 2/3: what is elsewhere is the target's."""
    if weak:
        monkeypatch.setattr(SiteSecAgg, "masked", masks_with_the_newest)
    attacker = Attacker(sites, *sites.join(program(sites.images), "late1"))
    vector = vector_of(attacker.federation)
    trainer = sites.places.seats[TARGET]._trainer
    assert trainer is not None
    own = trainer.ask(CalibrateStep(ROUND, vector, HEAT, 1, masked=True), "counting")
    if not weak:
        with pytest.raises(SiteError, match="the sum of 4 sites holds"):
            attacker.sum(vector, monkeypatch)
        return
    sums, mine = read(CountSums, attacker.sum(vector, monkeypatch), 3), read(CountSums, own, 3)
    place = int(sums.held.sum(0).argmax())
    elsewhere = torch.ones(sums.tested.shape[1], dtype=torch.bool)
    elsewhere[place] = False
    assert torch.equal(sums.tested[:, elsewhere], mine.tested[:, elsewhere])
    assert int(mine.tested[:, elsewhere].sum()) > 0.9 * int(mine.tested.sum())
