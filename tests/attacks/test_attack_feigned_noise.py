"""Noise in name only: a program states 1e-9, and counts as one that adds noise.

Whoever chooses the program chooses the strength of its noise. Three clauses asked only whether the
sites add noise: memory that they keep under secure aggregation, noised figures of models with
parameters of their own, and over how many lists of sites a round may be summed. Noise that is only
promised is the same: a huge multiplier costs nothing, and need not be there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import SIDE, AttackedSite, Model, draw, known, noise_images, program
from masked_round import MaskedRound, in_the_clear, sum_where_one_remembers_nothing

from fedsight.core.errors import ConfigError
from fedsight.core.types import Order
from fedsight.governance.contract import ADDED_AT_SITE, Contract, protections
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.privacy import accounting
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c", "d")
MASKED = {"require": ["secure_aggregation"]}
FEIGNED = 1e-9
TARGET = 250  # the brightest grey value of the image in question; all others are below 100


def any_noise(self: Contract, program: Program) -> frozenset[str]:
    """Noise of any strength, as it was."""
    return ADDED_AT_SITE & set(protections(program))


def asks_for_any_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contract, "noised", any_noise)


def members(attack: Attack, root: Path, **contract: Any) -> list[AttackedSite]:
    return [
        attack(name, draw(root / f"images-{name}", noise_images(6, number)), **contract)
        for number, name in enumerate(NAMES)
    ]


def remembering(root: Path, mechanism: str, noise: float) -> Program:
    """SCAFFOLD under secure aggregation, with noise of the sites."""
    return program(
        root / "images-a",
        secure={"name": "secagg"},
        algorithm={"name": "scaffold"},
        train={"epochs": 2},
        privacy={"name": mechanism, "noise_multiplier": noise, "clip": 100.0},
    )


def test_feigned_noise_lets_memory_single_a_site_out(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks_for_any_noise(monkeypatch)
    sites, of = members(attack, tmp_path, **MASKED), remembering(tmp_path, "local", FEIGNED)
    for site in sites:
        assert "error" not in site.join(of)
    found, target = sum_where_one_remembers_nothing(sites, of)
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < 1e-5


@pytest.mark.parametrize("mechanism", ["local", "example", "distributed"])
def test_ours_ask_how_strong_the_noise_is_that_hides_memory(
    attack: Attack, tmp_path: Path, mechanism: str
) -> None:
    of = remembering(tmp_path, mechanism, FEIGNED)
    sites = members(attack, tmp_path, **MASKED)
    assert "contract.masked_memory: the program keeps memory" in sites[0].join(of)["error"]


@pytest.mark.parametrize(("mechanism", "joins"), [("local", True), ("example", False)])
def test_bounded_noise_hides_memory_if_it_hides_the_whole_site(
    attack: Attack, tmp_path: Path, mechanism: str, joins: bool
) -> None:
    site = members(attack, tmp_path, **MASKED, min_noise_multiplier=1.0)[0]
    said = site.join(remembering(tmp_path, mechanism, 1.0))
    assert ("error" not in said) is joins, said
    assert "min_noise" in site.join(remembering(tmp_path, mechanism, FEIGNED), "run2")["error"]


# -- noised figures of parameters that stay at the site ------------------------------------------


def told_by_figures(attack: Attack, root: Path, there: bool, **contract: Any) -> bool | None:
    """Whether one noised answer says that the target is among the training images; None without an
    answer. The head of fedrep learns in one masked round if the target is there, and is measured
    with a body that answers nothing but what it learnt."""
    train = noise_images(6)
    if there:
        train[1][4, 4] = TARGET
    images = draw(root / "images", train, noise_images(120, seed=1))
    of = program(
        images,
        algorithm={"name": "fedrep", "head_epochs": 2},
        train={"batch": 8, "lr": 0.1},
        secure={"name": "secagg"},
        privacy={"name": "example", "noise_multiplier": FEIGNED, "clip": 100.0},
    )
    rules = {**MASKED, "figures": "noised", "masked_memory": True, **contract}
    sites = [attack("target", images, **rules)]
    for number, name in enumerate(NAMES[:3]):
        other = draw(root / f"images-{name}", noise_images(6, number + 5))
        sites.append(attack(name, other, **rules))
    for site in sites:
        assert "error" not in site.join(of)
    pixels = torch.zeros(1, SIDE * SIDE)
    pixels[0, 4 * SIDE + 4] = 1.0
    federation = known(of)
    trap = Model(federation).looking(pixels, bias=-150 * 4 / 255)  # zero but for brighter pixels
    trap.set("hidden1.weight", 1.0).set("hidden1.bias", 0.0)
    MaskedRound(sites, of, Order(1, trap.travelling)).train(0)
    ant, bee = known(of).network.module.get_parameter("head.weight").detach()
    against = ((bee - ant < 0) & (bee - ant > -0.009)).float()
    flat = Model(federation).looking(0 * pixels).set("hidden1.weight", 0.0)
    found = sites[0].measure(flat.set("hidden1.bias", 100 * against).travelling, accepted=1)
    if "withheld" in found:
        return None
    confusion = np.asarray(found["metrics"]["confusion"][0])
    return bool(confusion[:, 1].sum() > confusion[:, 0].sum())


@pytest.mark.parametrize("there", [True, False])
def test_one_noised_answer_tells_a_training_image_where_any_noise_counts(
    attack: Attack, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks_for_any_noise(monkeypatch)
    assert told_by_figures(attack, tmp_path, there) is there


def test_ours_releases_no_figures_of_parameters_with_noise_of_any_strength(
    attack: Attack, tmp_path: Path
) -> None:
    assert told_by_figures(attack, tmp_path, there=True) is None


# -- noise without end ---------------------------------------------------------------------------


def test_noise_without_end_in_a_ledger_stops_no_accountant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was recorded before the owner set epsilon, and every later question ended in an error."""
    huge = {"kind": "gaussian", "noise": 1e200, "neighbours": "replace_one"}
    Ledger(tmp_path).append(LedgerEntry("update", data_set="images", event=huge, enforced=True))
    assert Ledger(tmp_path).spent("images", 1e-5) < 1e-6
    monkeypatch.setattr(accounting, "MOST_NOISE", 1e300)
    with pytest.raises(ZeroDivisionError):
        Ledger(tmp_path).spent("images", 1e-4)


def test_a_program_states_no_such_noise(tmp_path: Path) -> None:
    for name in ("local", "example", "central"):
        draw(tmp_path / "images", noise_images(6))
        with pytest.raises(ConfigError, match="noise_multiplier"):
            program(tmp_path / "images", privacy={"name": name, "noise_multiplier": 1e10})


# -- two sums of one round -----------------------------------------------------------------------

PROMISED = {
    "require": ["secure_aggregation", "client_dp"],
    "epsilon": 0.01,
    "trust_coordinator_noise": True,
}


def test_noise_that_is_only_promised_does_not_pay_for_the_difference_of_two_sums(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second list is served where epsilon alone lifts the limit, and is refused here."""
    sites = members(attack, tmp_path, **PROMISED)
    of = program(
        tmp_path / "images-a",
        secure={"name": "secagg"},
        privacy={"name": "central", "noise_multiplier": 1e9, "clip": 1e6},
    )
    for site in sites:
        assert "error" not in site.join(of)
    order = Order(1, known(of).initial)
    whole = MaskedRound(sites, of, order)
    one = whole.sum([whole.train(number) for number in range(4)])["delta"]
    rest = MaskedRound(sites[1:], of, order, serial=2)
    updates = [rest.train(number) for number in range(3)]
    with pytest.raises(ValueError, match=r"contract\.sums: round 1 of this program was summed"):
        rest.sum(updates)
    assert Ledger(sites[1].home).spent("images", 1e-5, trusted=True) < 0.01

    monkeypatch.setattr(Contract, "most_sums", lambda self, stated: self.sums)
    again = MaskedRound(sites[1:], of, order, serial=3)
    other = again.sum([again.train(number) for number in range(3)])["delta"]
    target = in_the_clear(sites[0], of, order)
    assert target.abs().max() > 1e-3
    assert (one - other - target).abs().max() < 1e-2 * target.abs().max()
