"""The compatibility matrix: check answers as the table says, pair by pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import federations
import pytest
import torch

from fedsight.algorithms.base import Algorithm, Mean
from fedsight.algorithms.fedavg import FedAvg
from fedsight.algorithms.fedexp import FedExP
from fedsight.core.errors import ConfigError
from fedsight.core.layout import Kind, Layout
from fedsight.core.types import PartSpec, PartSpecs
from fedsight.models.base import Network
from fedsight.privacy.base import mechanisms
from fedsight.privacy.mechanisms.local import Local
from fedsight.program.facts import Facts
from fedsight.program.program import Program
from fedsight.program.rules import (
    BALANCED,
    BEYOND,
    BOUNDED,
    BUFFERED,
    BY_LOSS,
    CHOSEN,
    COUNTED,
    FEATURES,
    FROZEN,
    INTEGERS,
    KEPT,
    LABELS,
    LINEAR,
    LOSS,
    LOSSY,
    MIXED,
    NESTED,
    PERSONAL,
    PLAIN,
    PRODUCTS,
    SCALARS,
    SCORES,
    SECURE,
    SEVERAL,
    SINGLE,
    STATISTICS,
    VARYING,
    VARYING_MODELS,
    WEIGHTING,
    Rule,
    met,
    remarks,
    rules,
)

RULES = rules()

SETTINGS: dict[str, dict[str, Any]] = {
    "central": {"privacy": {"name": "central"}},
    "matrix": {"privacy": {"name": "matrix"}},
    "local": {"privacy": {"name": "local"}},
    "example": {"privacy": {"name": "example"}},
    "distributed": {"privacy": {"name": "distributed"}},
    SECURE: {"secure": {"name": "secagg"}},
    PLAIN: {"secure": {"name": "none"}},
    STATISTICS: {"model": {"norm": "batch"}},
    KEPT: {
        "model": {"norm": "batch"},
        "algorithm": {"name": "fedbn"},
    },
    WEIGHTING: {"rounds": {"weighting": "samples"}},
    "a cohort": {"rounds": {"cohort": 4}},
    "a quorum": {"rounds": {"quorum": 4}},
    SEVERAL: {"algorithm": {"name": "scaffold"}},
    SCALARS: {"algorithm": {"name": "fednova"}},
    PERSONAL: {"algorithm": {"name": "fedrep"}},
    "a feature shift": {"shift": {"kind": "noise", "strength": 0.5}},
    FROZEN: {"train": {"only": ["head"]}},
    SINGLE: {"aggregation": {"name": "median"}},
    LOSSY: {"codec": {"up": {"steps": ["float16"]}}},
    LINEAR: {"codec": {"up": {"steps": ["random-k"]}}},
    VARYING: {"codec": {"up": {"steps": ["zstd"]}}},
    VARYING_MODELS: {"codec": {"down": {"steps": ["float16", "zstd"]}}},
    INTEGERS: {},  # the algorithm is `Counting`
    BEYOND: {"algorithm": {"name": "moon"}},
    LOSS: {},  # the algorithm is `Asking`
    PRODUCTS: {},  # the algorithm is `Multiplying`
    BOUNDED: {"algorithm": {"name": "ncm", "clip": 1.0}, "rounds": {"rounds": 1}},
    MIXED: {"train": {"augment": ["mixup"]}},
    BALANCED: {"train": {"sampling": "balanced"}},
    COUNTED: {"task": {"class_weights": "site"}},
    NESTED: {"model": {"groups": [{"sites": ["*"], "width": 8}]}},
    CHOSEN: {"participation": {"name": "poisson"}, "rounds": {"cohort": 4}},
    BY_LOSS: {"participation": {"name": "power-of-choice"}, "rounds": {"cohort": 4}},
    BUFFERED: {"rounds": {"mode": "buffered"}, "timing": {"delay_seconds": 1.0}},
    SCORES: {"public": {"images": 9}},  # the algorithm is `Scoring`
    LABELS: {"task": {"name": "faces"}, "model": {"name": "embedding", "backbone": "small_cnn"}},
}


class Counting(FedAvg):
    """An algorithm that no table knows, whose sites send integers."""

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """How many images each class has."""
        return {"counts": PartSpec((classes,), torch.int64, bound=images)}


class Scoring(Counting):
    """One whose integers are of public images."""

    on_public: ClassVar[bool] = True


class Asking(FedAvg):
    """An algorithm that no table knows, whose updates depend on the loss."""

    asks_loss: ClassVar[bool] = True


class Multiplying(FedAvg):
    """An algorithm that no table knows, whose coordinator multiplies values of single updates."""

    def derived(self, network: Network, layout: Layout) -> None:
        """Of the networks here, nothing."""


STAND_INS: dict[str, Algorithm] = {
    INTEGERS: Counting(),
    SCORES: Scoring(),
    LOSS: Asking(),
    PRODUCTS: Multiplying(),
}


def program(*features: str) -> Program:
    sections: dict[str, Any] = {"rounds": {"weighting": "uniform"}, "split": {"sites": 5}}
    if "distributed" in features:  # goes with nothing else
        sections["secure"] = {"name": "secagg"}
    for feature in features:
        for section, values in SETTINGS[feature].items():
            sections[section] = {**sections.get(section, {}), **values}
    if "privacy" in sections:
        sections["privacy"]["noise_multiplier"] = 1.0
    made = federations.program(**sections)
    for feature, algorithm in STAND_INS.items():
        made = replace(made, algorithm=algorithm) if feature in features else made
    return made


def test_a_cap_of_weights_and_the_rule_that_uses_it_need_one_another() -> None:
    for given, word in (({"weighting": "capped"}, "no cap is set"), ({"cap": 5}, "without effect")):
        (problem,) = federations.program(rounds=given).check()
        assert problem.where == "rounds.cap"
        assert word in problem.cause
    assert federations.program(rounds={"weighting": "capped", "cap": 5}).check() == []


def test_every_mechanism_is_judged_with_every_feature() -> None:
    heads = set(mechanisms.names()) - {"none"}
    pairs = {(head, feature) for head in {*heads, SECURE} for feature in FEATURES}
    assert {(rule.protection, rule.feature) for rule in RULES} == pairs - {
        (SECURE, SECURE),
        (SECURE, PLAIN),
    }
    assert len({(rule.protection, rule.feature) for rule in RULES}) == len(RULES)
    assert FEATURES.keys() <= SETTINGS.keys()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.protection}-{rule.feature}")
def test_check_answers_as_the_table_says(rule: Rule) -> None:
    found = program(rule.protection, rule.feature)
    network = found.model.build(1, 14, 14, 10, 0)
    assert rule in met(found, network)
    problems = found.check()
    assert problems == found.check_network(network)  # a sketch of the network tells as much
    if rule.verdict == "refused":
        (problem,) = problems
        assert rule.cause in problem.cause
        assert (problem.where, problem.cure) == (rule.where, rule.cure)
        assert rule.where
        assert rule.cure
    else:
        assert problems == []
    assert (rule.cause in remarks(found)) == (rule.verdict == "stated")


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in mechanisms.names()])
def test_without_protection_nothing_of_this_is_refused(feature: str) -> None:
    assert program(feature).check() == []


@pytest.mark.parametrize("name", sorted(set(mechanisms.names()) - {"none"}))
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", -1.0),
        ("epsilon", float("inf")),
        ("epsilon", "three"),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", -1e-5),
        ("noise_multiplier", 0.0),
        ("clip", 0.0),
        ("clip", -1.0),
        ("clip", float("nan")),
    ],
)
def test_what_is_out_of_range_is_one_clear_message(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        federations.program(privacy={"name": name, "epsilon": 3.0, setting: value})
    (problem,) = caught.value.problems
    assert problem.where == f"privacy.{setting}"
    assert problem.cure


def test_noise_that_is_shared_goes_with_masks_alone() -> None:
    privacy = {"name": "distributed", "noise_multiplier": 1.0}
    for name in ("none", "quantised"):  # rounded, but for all to see
        of = federations.program(
            privacy=privacy, secure={"name": name}, rounds={"weighting": "uniform"}
        )
        (problem,) = of.check()
        assert problem.where == "privacy.name"
        assert "only a share of the noise" in problem.cause
        assert "secure.name = 'secagg'" in problem.cure


def test_what_secure_aggregation_refuses_is_said_in_its_own_name() -> None:
    (problem,) = program(SECURE, STATISTICS).check()
    assert problem.cause.startswith("under secure aggregation: running statistics")
    (problem,) = program("distributed", STATISTICS).check()  # once, though both refuse it
    assert problem.cause.startswith("under privacy 'distributed': running statistics")


@pytest.mark.parametrize("protection", [SECURE, "local", "example"])
def test_a_model_that_whitens_is_told_how_to_have_no_running_statistics(protection: str) -> None:
    (problem,) = program(protection, STATISTICS).check()
    assert "of BatchNorm or whitening" in problem.cause
    assert "set model.whiten = false" in problem.cure


class KeepsBody(FedAvg):
    """An algorithm that no table knows, which keeps the body at the site."""

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """All but the head is personal."""
        return kind if name in network.head else Kind.PERSONAL


class Quieter(Local):
    """A mechanism that no table knows: noise at the site."""


def test_a_new_algorithm_and_a_new_mechanism_are_judged_by_what_they_do() -> None:
    local = {"name": "local", "noise_multiplier": 1.0}
    of = federations.program(privacy=local, rounds={"weighting": "uniform"})
    assert remarks(of) == []
    kept = replace(of, algorithm=KeepsBody())
    (remark,) = remarks(kept)
    assert "trained without noise" in remark
    quiet = replace(kept, privacy=Quieter(noise_multiplier=1.0))
    assert remarks(quiet) == [remark]
    weighted = replace(quiet, rounds=quiet.rounds.model_copy(update={"weighting": "samples"}))
    assert [problem.where for problem in weighted.check()] == ["rounds.weighting"]


def test_integers_need_a_rule_that_sums() -> None:
    (problem,) = program(SINGLE, INTEGERS).check()
    assert problem.where == "aggregation.name"
    assert "sums of integers" in problem.cause


class Bounded(Local):
    """A mechanism that no table knows, which says that it bounds and noises integers."""

    covers_integers = True


def test_a_mechanism_that_covers_integers_is_taken_at_its_word() -> None:
    of = replace(program("local", INTEGERS), privacy=Bounded(noise_multiplier=1.0))
    assert of.check() == []


def test_frozen_statistics_are_neither_refused_nor_sent() -> None:
    """A backbone with BatchNorm goes with every protection once it is frozen."""
    sections = {"model": {"norm": "batch"}, "rounds": {"weighting": "uniform"}}
    of = federations.program(**sections, secure={"name": "secagg"}, train={"only": ["head"]})
    network = of.model.build(1, 14, 14, 10, 0)
    assert (of.check(), of.check_network(network)) == ([], [])
    assert not Facts.of(of, network).travelling_statistics
    (problem,) = replace(of, train=of.train.model_copy(update={"only": ()})).check()
    assert problem.where == "model.norm"


def test_either_the_target_or_the_noise_must_be_said() -> None:
    uniform = {"weighting": "uniform"}
    (problem,) = federations.program(privacy={"name": "central"}, rounds=uniform).check()
    assert problem.where == "privacy.epsilon"


def test_a_missing_library_is_a_problem_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsight.privacy.base.find_spec", lambda name: None)
    (problem,) = program("example").check()
    assert "fedsight[privacy]" in problem.cure


def test_a_count_noise_needs_a_quantile() -> None:
    privacy = {"name": "central", "epsilon": 3.0, "count_noise": 2.0}
    (problem,) = federations.program(privacy=privacy, rounds={"weighting": "uniform"}).check()
    assert problem.where == "privacy.count_noise"


def test_noise_does_not_drive_the_rate_of_fedexp() -> None:
    """Ten equal updates of length 0.5, each with noise of 0.01 in every value."""
    draws, size = torch.Generator().manual_seed(0), 20_000
    common = torch.randn(size, generator=draws).double()
    common *= 0.5 / common.norm()
    rates = []
    for noise in (0.0, 0.01):
        sites = [common + noise * torch.randn(size, generator=draws).double() for _ in range(10)]
        delta = torch.stack(sites).mean(0)
        square = torch.stack([one.square().sum() for one in sites]).mean().reshape(1)
        mean = Mean({"delta": delta.clone(), "square": square}, 1.0)
        new, _ = FedExP().step(torch.zeros(size), {}, mean, 1)
        rates.append(float(new.double().norm() / delta.norm()))
    assert rates[0] == pytest.approx(1.0)
    assert rates[1] > 2.0
    noised = {"name": "example", "noise_multiplier": 1.0}
    of = federations.program(algorithm={"name": "fedavg"}, privacy=noised)
    assert not of.check()
    (problem,) = replace(of, algorithm=FedExP()).check()
    assert "independent noise" in problem.cause
    assert not federations.program(algorithm={"name": "fedexp"}).check()
