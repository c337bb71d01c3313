"""Masked sums over test images: a coordinator chooses the model, and wants those of one site.

On builds that lack one rule it gets them to the last bit: by a sum over all sites less one over all
others, or by a model of which the others' sums are known. A third would tell by a refusal whether a
number exceeds a bound, a fourth whether a model overflows on an image. A fifth subtracts what the
other owners release by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_counts import ROUND, TESTS, Sites, draw, program, vector_of
from site_services import LocalLink
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.sum_form import SumForm
from fedsight.core.types import Order, PartSpecs
from fedsight.deploy.site import calibration, secagg_client
from fedsight.deploy.site.trainer import CalibrateStep, TrainStep
from fedsight.engines.protected import order_digest
from fedsight.engines.remote import messages
from fedsight.engines.remote import sums as asking
from fedsight.engines.remote.key_exchange import Subject
from fedsight.engines.remote.models import Model, digest_of
from fedsight.engines.remote.site_lists import OTHER_RULE, Willing
from fedsight.engines.remote.sums import SumQuestion
from fedsight.evaluation.trust.answers import Answers
from fedsight.evaluation.trust.sums import CountSums, form, read
from fedsight.governance.contract import Contract
from fedsight.governance.ledger import SumLimit
from fedsight.program.federation import federate
from fedsight.program.program import Program

TARGET = "west"
OTHERS = [site for site in TESTS if site != TARGET]
HEAT = 1.0
RULE = Contract(figures="masked").sum_policy


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("counted"))


@pytest.fixture
def sites(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(images, tmp_path / "sites", monkeypatch)
    for site in TESTS:
        made.owner(site, figures="masked", require=["secure_aggregation"])
    yield made
    made.close()


def question(**changes: Any) -> SumQuestion:
    return replace(SumQuestion(HEAT, form(CountSums, 3)), **changes)


def summed(
    sites: Sites,
    of: Program,
    run: str,
    names: Iterable[str] = TESTS,
    scale: float = 1.0,
    **how: Any,
) -> tuple[Tensor | None, dict[str, str]]:
    """The sum that comes out, and why sites are not in it."""
    _, engine = sites.join(of, run, names, how.pop("link", None))
    found: list[Tensor] = []
    model = scale * vector_of(federate(program(sites.images))), ROUND
    why = engine.add_up(model, question(**how), lambda at, images, numbers: found.append(numbers))
    return (found[0] if found else None), why


def own(sites: Sites) -> Tensor:
    """The sums of the target, as its trainer finds them."""
    seat = sites.places.seats[TARGET]
    trainer = seat._trainer
    assert trainer is not None
    sites.join(program(sites.images), "own1")
    vector = vector_of(federate(program(sites.images)))
    step = CalibrateStep(ROUND, vector, HEAT, 1, masked=True)
    found = trainer.ask(step, "counting")
    assert isinstance(found, Tensor)
    return found


def two_lists(sites: Sites, images: Path) -> tuple[Tensor | None, dict[str, str]]:
    """The sum over all less that over all others, in runs of two programs."""
    whole, _ = summed(sites, program(images), "all1")
    assert whole is not None
    rest, why = summed(sites, replace(program(images), seed=7), "rest1", OTHERS)
    return (None if rest is None else whole - rest), why


def test_without_a_limit_of_lists_two_sums_tell_of_one_site(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contract, "sum_limit", lambda self, stated: SumLimit(1, None, None))
    found, _ = two_lists(sites, images)
    assert found is not None
    assert torch.equal(found, own(sites))


def test_sites_help_with_sums_over_one_list_in_all_runs_of_all_programs(
    sites: Sites, images: Path
) -> None:
    found, why = two_lists(sites, images)
    assert found is None
    assert all("contract.figures_lists" in why[site] for site in OTHERS)
    again, _ = summed(sites, replace(program(images), seed=8), "all2")  # the same list
    assert again is not None
    assert torch.equal(again, summed(sites, program(images), "all1")[0])  # type: ignore[arg-type]


def less_exact(sites: Sites, images: Path) -> tuple[Tensor | None, dict[str, str]]:
    """The masked sum over all less the sums of the others, whose owners let them leave alone."""
    for site in OTHERS:
        sites.owner(site, figures="exact")
    whole, why = summed(sites, program(images), "mixed1")
    _, engine = sites.join(program(images, {"name": "none"}), "alone1", OTHERS)
    model = vector_of(federate(program(images))), ROUND
    found: list[Tensor] = []
    assert engine.add_up(model, question(), lambda at, count, one: found.append(one)) == {}
    assert len(found) == len(OTHERS)
    assert whole is not None
    return whole - torch.stack(found).sum(0), why


def test_without_one_rule_of_all_owners_exact_sums_tell_of_a_masked_site(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contract, "sum_policy", "any")
    found, why = less_exact(sites, images)
    assert why == {}
    assert found is not None
    assert torch.equal(found, own(sites))


def test_a_masked_site_is_summed_only_with_sites_of_the_same_rule(
    sites: Sites, images: Path
) -> None:
    found, why = less_exact(sites, images)
    assert why == {TARGET: OTHER_RULE}
    assert found is not None
    assert not found.any(), "the sum is of the others alone"


@pytest.mark.parametrize("claimed", ["masked:1", "exact"])
def test_a_site_masks_nothing_under_another_rule_than_its_own(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch, claimed: str
) -> None:
    """Whatever a coordinator says that the rule is, some site refuses: the target, or the others,
    which then are not in the sum that the target has sent its share of."""
    for site in OTHERS:
        sites.owner(site, figures="exact")
    monkeypatch.setattr(asking, "largest_group", sorted)
    honest = Willing.read

    def read(answer: Any, site: str) -> Willing:
        return replace(honest(answer, site), policy=claimed)

    monkeypatch.setattr(Willing, "read", read)
    found, why = summed(sites, program(images), "claimed1")
    refusing = {site for site in TESTS if "another rule" in why.get(site, "")}
    assert refusing == ({TARGET} if claimed == "exact" else {*OTHERS})
    assert (found is None) == (claimed != "exact")


@dataclass
class TwoModels:
    """A line that hands all but the target a model that knows nothing."""

    link: LocalLink
    blank: Tensor
    named: dict[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        return list(self.link.sites)

    def ask(self, site: str, kind: str, header: Any, body: bytes, timeout: float) -> Any:
        if site != TARGET and kind == "piece" and header["name"] == "vector":
            whole = bytes(messages.pack([self.blank]))
            body = whole[header["start"] : header["start"] + len(body)]
        elif site != TARGET and "model" in header:
            header = {**header, "model": digest_of(self.blank)}
        return self.link.ask(site, kind, header, body, timeout)


def with_two_models(sites: Sites, images: Path) -> tuple[Tensor | None, dict[str, str]]:
    of = program(images)
    blank = torch.zeros_like(vector_of(federate(of)))
    link = TwoModels(LocalLink(sites.places.seats), blank)
    return summed(sites, of, "two1", link=link)


@pytest.mark.usefixtures("vectors_apart")
def test_keys_that_are_not_bound_to_the_model_let_it_differ(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores of a model that knows nothing are 2/3: what is elsewhere is the target's."""
    for module in (calibration, asking):
        monkeypatch.setattr(module, "sums_digest", lambda order, heat: "0" * 64)
    found, _ = with_two_models(sites, images)
    assert found is not None
    sums = read(CountSums, found, 3)
    mine = read(CountSums, own(sites), 3)
    place = int(sums.held.sum(0).argmax())
    elsewhere = torch.ones(sums.tested.shape[1], dtype=torch.bool)
    elsewhere[place] = False
    assert torch.equal(sums.tested[:, elsewhere], mine.tested[:, elsewhere])
    assert int(mine.tested[:, elsewhere].sum()) > 0.9 * int(mine.tested.sum())


@pytest.mark.usefixtures("vectors_apart")
def test_keys_are_bound_to_the_model(sites: Sites, images: Path) -> None:
    found, why = with_two_models(sites, images)
    assert found is None
    assert any("not made for these sums" in one for one in why.values())


def test_keys_for_one_temperature_serve_no_other(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor losses: all sites answer the same question, or none of them."""
    honest = asking.SiteSums._header

    def other(self: Any, model: Any, question: SumQuestion, number: int) -> dict[str, object]:
        return {**honest(self, model, question, number), "temperature": 2.0}

    monkeypatch.setattr(asking.SiteSums, "_header", other)
    found, why = summed(sites, program(images), "heat1")
    assert found is None
    assert any("not made for these sums" in one for one in why.values())


def test_keys_for_sums_serve_no_training(sites: Sites, images: Path) -> None:
    """Nor the other way round: the lists of sites are counted by what keys are for."""
    of = program(images)
    federation, engine = sites.join(of, "keys1")
    vector = vector_of(federation)
    tests = {site: 3 * images for site, images in TESTS.items()}
    attempt = asking._MaskedSum(Model(federation, ROUND, vector, None), question(), tests, RULE)
    assert engine._exchange.begin(attempt.subject(federation), [*TESTS]) == {}
    client, table = sites.places.seats[TARGET]._secagg, engine._total.quantiser.table()
    with pytest.raises(SiteError, match="not made for round 2"):
        client.protection(TrainStep(Order(ROUND, vector), 0, 0), None, {"quantiser": table})
    digest = order_digest(Order(ROUND, vector))
    assert engine._exchange.begin(Subject(ROUND, digest, table), [*TESTS]) == {}
    told = sites.ask(TARGET, vector, temperature=HEAT, integers=attempt.integers.table())
    assert "not made for these sums" in told["error"]


class LowForm(SumForm):
    """As if every site had one test image."""

    def parts(self, images: int) -> PartSpecs:
        return super().parts(1)


def bounded(sites: Sites, images: Path) -> set[str]:
    """What the sites say to bounds of a coordinator's choice."""
    real = form(CountSums, 3)
    low = LowForm(real.shapes, real.most)
    _, why = summed(sites, program(images), "low1", form=low)
    return set(why.values())


def test_a_bound_of_the_coordinators_choice_is_refused_whatever_the_images(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("integer parts are not those" in one for one in bounded(sites, images))
    monkeypatch.setattr(secagg_client, "_check_bound", lambda own, bound, terms: None)
    monkeypatch.setattr(Contract, "protected", False)  # where failures are told
    assert any("sent the integer" in one for one in bounded(sites, images)), "it tells of a number"


def test_a_model_that_overflows_makes_no_sums_fail(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may do so on some images only, and a site that then sends none tells which it has."""
    found, why = summed(sites, program(images), "huge1", scale=1e38)
    assert found is not None
    assert not why
    monkeypatch.setattr(Answers, "finite", property(lambda self: self))
    found, why = summed(sites, program(images), "huge2", scale=1e38)
    assert found is None
    assert any("not finite" in one for one in why.values())
