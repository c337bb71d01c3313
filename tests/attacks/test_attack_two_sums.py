"""Two sums of one round, over lists that differ by one site: their difference is its update.

Training is reproducible, so a round that is repeated, or another run of the same program, adds the
same updates again. A site remembers over which sites a round of a program was summed, and helps to
unmask no sum of it over others. Where it does not, the update comes out.

A program that differs in nothing that matters (a deadline) is another program, and a round with the
same model another round: their sums come out, exactly, unless the owner permits one list of sites
for all of them.

Nor need the lists differ: with another batch, or another cap of the weights, a program has only the
sites with more images train or count otherwise, and in the difference all others cancel. That no
record of lists ends; an owner who names the programs does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from four_masked_sites import NAMES, Attack, Federation, like
from secagg_rounds import MaliciousCoordinator, binding, lists, update
from torch import Tensor

from fedsight.core.errors import DeployError, SiteError
from fedsight.governance.contract import Contract
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.graph import parameters


@pytest.fixture
def federation(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    return Federation(attack, tmp_path, monkeypatch)


@pytest.mark.parametrize("run", ["run1", "run2"])
def test_the_difference_of_two_sums_is_an_update_where_any_list_is_served(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr(Contract, "most_sums", lambda self, stated: None)
    found = federation.sum(NAMES) - federation.sum(NAMES[:3], run)
    closest = min(float((found - one).abs().max()) for one in federation.trained[:4])
    assert closest < 1e-4 < 1e-3 < found.abs().max()


@pytest.mark.parametrize("run", ["run1", "run2"])
def test_ours_serve_one_list_whatever_is_forgotten(federation: Federation, run: str) -> None:
    federation.sum(NAMES)
    for site in federation.sites.values():
        site.close()  # a process whose lease is gone ends itself
        shutil.rmtree(site.home / "memory")
        site.restart()
    with pytest.raises(SiteError, match="only 0 sites agreed on who survived"):
        federation.sum(NAMES[:3], run)
    lines = [line for line in federation.sites["a"].service._log.read() if "why" in line]
    assert "contract.sums: round 1 of this program was summed over 1 other list" in lines[-1]["why"]


WHOLE: dict[str, Any] = {"train": {"batch": 8}}  # all of a site's images in a step
ALIKE: dict[str, Any] = {"train": {"batch": 8, "steps": 1, "sampling": "independent"}}
LATER: dict[str, Any] = {"rounds": {"deadline": 601.0}}
Repetition = Callable[[Federation, Iterable[str]], Tensor]


def of_another_program(federation: Federation, names: Iterable[str]) -> Tensor:
    """The sum of the first round of a program that waits a second longer."""
    sections = WHOLE if federation.program.train.steps is None else ALIKE
    federation.program = federation.like(**sections, **LATER)
    return federation.sum(names)


def of_another_round(federation: Federation, names: Iterable[str]) -> Tensor:
    """The sum of the second round, from the same model; one step takes in all images."""
    return federation.sum(names, round=2)


REPEATED = pytest.mark.parametrize("repeated", [of_another_program, of_another_round])


@REPEATED
def test_sums_that_count_as_different_are_subtracted_where_lists_are_not_limited(
    federation: Federation, repeated: Repetition
) -> None:
    federation.program = federation.like(**WHOLE)
    found = federation.sum(NAMES) - repeated(federation, NAMES[:3])
    closest = min(float((found - one).abs().max()) for one in federation.trained[:4])
    assert closest < 1e-7 < 1e-3 < found.abs().max()


@REPEATED
def test_one_list_of_sites_for_all_rounds_and_programs_leaves_nothing_to_subtract(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: Repetition
) -> None:
    named = [like(tmp_path, **one).fingerprint for one in (ALIKE, {**ALIKE, **LATER})]
    federation = Federation(attack, tmp_path, monkeypatch, lists=1, programs=named)
    federation.program = federation.like(**ALIKE)
    federation.sum(NAMES)
    with pytest.raises(SiteError, match="only 0 sites agreed on who survived"):
        repeated(federation, NAMES[:3])
    repeated(federation, NAMES)


MORE = 3  # images of the target
SAME: dict[str, Any] = {"train": {"batch": 9}, "rounds": {"weighting": "capped", "cap": 6}}
# A batch that is one step for everybody but the target, with weights that are 6 for all; what moves
# the second step of a round; and weights that are 6 but for the target.
STEPS: dict[str, Any] = {**SAME, "train": {"batch": 6}}
OTHERWISE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steps": (SAME, STEPS),
    "momentum": (STEPS, {**SAME, "train": {"batch": 6, "momentum": 0.9}}),
    "weights": (SAME, {**SAME, "rounds": {"weighting": "samples"}}),
}


@pytest.mark.parametrize("otherwise", OTHERWISE)
def test_over_one_list_a_site_with_more_images_is_left_by_two_programs(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, otherwise: str
) -> None:
    for check in ("_check_named", "_check_alike"):
        monkeypatch.setattr(Contract, check, lambda self, program: None)
    federation = Federation(attack, tmp_path, monkeypatch, MORE, lists=1)
    sums = []
    for sections in OTHERWISE[otherwise]:
        federation.program = federation.like(**sections)
        sums.append(federation.sum(NAMES))
    before, after = federation.trained[:4], federation.trained[4:]
    found = sums[1] - sums[0]
    if otherwise == "weights":
        alone = [MORE * one for one in before]
    else:
        alone = [6 * (two - one) for one in before for two in after]
    closest = min(float((found - one).abs().max()) for one in alone)
    assert closest < 1e-4 < 1e-3 < found.abs().max()


@pytest.mark.parametrize("otherwise", OTHERWISE)
def test_ours_take_part_in_the_programs_that_the_owner_names(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, otherwise: str
) -> None:
    monkeypatch.setattr(Contract, "_check_alike", lambda self, program: None)  # named ones suffice
    first, second = OTHERWISE[otherwise]
    named = [like(tmp_path, **first).fingerprint]
    federation = Federation(attack, tmp_path, monkeypatch, MORE, lists=1, programs=named)
    federation.program = federation.like(**first)
    federation.sum(NAMES)
    assert federation.refusals(federation.like(**second)) == {"contract.programs"}


def test_lists_are_limited_only_for_programs_that_are_named(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(attack, tmp_path, monkeypatch, lists=1)
    assert federation.refusals(federation.program) == {"contract.lists"}
    ridge = {"algorithm": {"name": "ridge"}, "rounds": {"rounds": 1}}
    assert not federation.refusals(federation.like(**ridge)), "its sums know no steps or weights"


def test_a_round_is_repeated_with_the_same_sites(federation: Federation) -> None:
    """As it is after a crash; the same updates in the same sum tell nothing new."""
    first = federation.sum(NAMES)
    for site in federation.sites.values():
        site.restart()
    assert (federation.sum(NAMES) - first).abs().max() < 1e-4


def test_an_attempt_that_died_before_its_sum_came_out_costs_nothing(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as crash:
        crash.setattr("fedsight.privacy.secagg.server.SecAggServer.request", _killed)
        with pytest.raises(SiteError, match="killed"):
            federation.sum(NAMES)
    federation.sum(NAMES[:3])


def _killed(*_: object) -> bytes:
    raise SiteError("killed", "")


# Sites that were not asked to unmask have nothing to remember

SITES = 21
GIVEN = parameters(SITES, 0.0, 0.1, True)


class Memory:
    """What each site has recorded: a list of names."""

    def __init__(self) -> None:
        self._known: dict[int, frozenset[int]] = {}

    def permit(self, site: int) -> Callable[[m.Lists], None]:
        def check(told: m.Lists) -> None:
            if self._known.setdefault(site, told.survivors) != told.survivors:
                raise DeployError("contract.sums: another list", "")

        return check


def unmasked(
    serial: int, gone: Iterable[int], helpers: Iterable[int], memory: Memory | None
) -> Any:
    """The sum of a round without those `gone`, from the answers of `helpers` only."""
    attacker = MaliciousCoordinator(binding(SITES, GIVEN, serial=serial))
    attacker.advertise()
    attacker.deal(range(SITES))
    for site in range(SITES):
        attacker.mask(site)
    told = lists(SITES, gone)
    for site in told.survivors:  # signing uncovers nothing, so it is not what is counted here
        attacker.agree(site, told)
    for site in helpers:
        permits = [memory.permit(site)] if memory else []
        request = attacker.request(site, told)
        attacker.learn(site, attacker.clients[site].unmask(request, *permits))
    return attacker.take_masks_off(told.survivors)


def test_two_sums_come_out_where_nothing_is_remembered() -> None:
    least = GIVEN.threshold
    first = unmasked(1, [], range(least), None)
    second = unmasked(2, [0], range(SITES - least, SITES), None)
    assert np.array_equal(first - second, update(0))


def test_a_second_list_needs_a_site_that_remembers_the_first() -> None:
    least, memory = GIVEN.threshold, Memory()
    unmasked(1, [], range(least), memory)
    with pytest.raises(DeployError, match="another list"):
        unmasked(2, [0], range(SITES - least, SITES), memory)


def test_no_combination_of_sums_that_majorities_unmask_is_one_update() -> None:
    """The proof's statement, on drawn lists: each needs more than half of its sites to help, and a
    site helps with one list."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        sites = int(rng.integers(3, 12))
        fresh, rows = set(range(sites)), []
        while True:
            size = int(rng.integers(2, sites + 1))
            members = set(rng.permutation(sites)[:size].tolist())
            helpers = sorted(members & fresh)[: size // 2 + 1]
            if len(helpers) <= size // 2:
                break
            fresh -= set(helpers)
            rows.append([float(site in members) for site in range(sites)])
        if not rows:
            continue
        table = np.array(rows)
        rank = np.linalg.matrix_rank(table)
        for unit in np.eye(sites):
            assert np.linalg.matrix_rank(np.vstack([table, unit])) == rank + 1
