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

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacked_site import AttackedSite, InlineTrainer, draw, known, noise_images, program
from secagg_rounds import MaliciousCoordinator, binding, lists, update
from site_services import LocalLink
from torch import Tensor

from fedsight.core.errors import DeployError, SiteError
from fedsight.core.types import Order
from fedsight.deploy.declaration import gather
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.trainer import TrainedUpdate
from fedsight.engines.base import collect
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.governance.contract import Contract
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.graph import parameters
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c", "d")
TARGET = "d"
CONTRACT = {"require": ["secure_aggregation"], "figures": "none"}


def like(images: Path, **sections: Any) -> Program:
    """A masked program with these settings; where the images are is no part of its fingerprint."""
    return program(images, secure={"name": "secagg", "dropout": 0.25}, **sections)


class Federation:
    """Four sites, and a coordinator that asks some of them at a time for the first round."""

    def __init__(
        self,
        attack: Attack,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        more: int = 0,
        **contract: Any,
    ) -> None:
        """`more`: images that the target has beyond the 6 of each of the others."""
        self.trained: list[Tensor] = []  # the updates before they are masked
        asks = InlineTrainer.ask

        def spy(trainer: InlineTrainer, command: Any, doing: str) -> Any:
            found = asks(trainer, command, doing)
            if isinstance(found, TrainedUpdate):
                self.trained.append(found.payload["delta"].clone())
            return found

        monkeypatch.setattr(InlineTrainer, "ask", spy)
        self.sites: dict[str, AttackedSite] = {}
        for number, name in enumerate(NAMES):
            count = 6 + more if name == TARGET else 6
            images = draw(root / f"images-{name}", noise_images(count, number))
            self.sites[name] = attack(name, images, **CONTRACT, **contract)
        self.images = root / "images-a"
        self.program: Program = self.like()

    def like(self, **sections: Any) -> Program:
        """The program, with other settings."""
        return like(self.images, **sections)

    def sum(
        self,
        names: Iterable[str],
        run: str = "run1",
        round: int = 1,
        vector: Tensor | None = None,
    ) -> Tensor:
        """The sum of the round's updates from `vector` over some sites, without masks."""
        link = LocalLink({name: self.sites[name].service for name in names})
        declared, absent, _ = propose(self.program, run, link, {})
        assert not absent
        federation = gather(self.program, declared)
        engine = RemoteEngine(federation, link, RunRecord({}, {}, lambda: 0, id=run))
        whole = known(self.program)
        given = whole.initial if vector is None else vector
        order = Order(round, given[whole.layout.travelling])
        cohort = range(len(link.sites))
        outcome = collect(engine, order, cohort, lambda _: None, lambda: None)
        assert not outcome.rejected
        return outcome.total.plain()["delta"]


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


ANOTHER: dict[str, Any] = {"train": {"batch": 8}, "rounds": {"deadline": 601.0}}
Repetition = Callable[[Federation, Iterable[str]], Tensor]


def of_another_program(federation: Federation, names: Iterable[str]) -> Tensor:
    """The sum of the first round of a program that waits a second longer."""
    federation.program = federation.like(**ANOTHER)
    return federation.sum(names)


def of_another_round(federation: Federation, names: Iterable[str]) -> Tensor:
    """The sum of the second round, from the same model; one step takes in all images."""
    return federation.sum(names, round=2)


REPEATED = pytest.mark.parametrize("repeated", [of_another_program, of_another_round])


@REPEATED
def test_sums_that_count_as_different_are_subtracted_where_lists_are_not_limited(
    federation: Federation, repeated: Repetition
) -> None:
    federation.program = federation.like(train={"batch": 8})
    found = federation.sum(NAMES) - repeated(federation, NAMES[:3])
    closest = min(float((found - one).abs().max()) for one in federation.trained[:4])
    assert closest < 1e-7 < 1e-3 < found.abs().max()


@REPEATED
def test_one_list_of_sites_for_all_rounds_and_programs_leaves_nothing_to_subtract(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: Repetition
) -> None:
    named = [like(tmp_path).fingerprint, like(tmp_path, **ANOTHER).fingerprint]
    federation = Federation(attack, tmp_path, monkeypatch, lists=1, programs=named)
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
    monkeypatch.setattr(Contract, "_check_named", lambda self, program: None)
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
    first, second = OTHERWISE[otherwise]
    named = [like(tmp_path, **first).fingerprint]
    federation = Federation(attack, tmp_path, monkeypatch, MORE, lists=1, programs=named)
    federation.program = federation.like(**first)
    federation.sum(NAMES)
    assert _refusals(federation, federation.like(**second)) == {"contract.programs"}


def test_lists_are_limited_only_for_programs_that_are_named(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(attack, tmp_path, monkeypatch, lists=1)
    assert _refusals(federation, federation.program) == {"contract.lists"}
    ridge = {"algorithm": {"name": "ridge"}, "rounds": {"rounds": 1}}
    assert not _refusals(federation, federation.like(**ridge)), "its sums know no steps or weights"


@pytest.mark.parametrize("batch", [6, 9])
def test_vectors_tell_apart_who_takes_more_steps_and_nobody_else(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """What no contract refuses, and the owner of a named program sees to.

    Without biases and with an output of zero, twice the first weights are twice the features, and
    twice the first step of the output's weights. Not so the second step, which only the target
    takes, in batches that it draws, unless one takes in all of its images.
    """
    settings: dict[str, Any] = {"train": {"batch": batch, "lr": 0.5}}
    named = [like(tmp_path, **settings).fingerprint]
    federation = Federation(attack, tmp_path, monkeypatch, MORE, lists=1, programs=named)
    federation.program = federation.like(**settings)
    whole = known(federation.program)
    first, *_, output = [e for e in whole.layout.entries if e.name.endswith("weight")]
    assert output.name in whole.network.head
    single = whole.initial.clone()
    for entry in whole.layout.entries:
        if entry == output or entry.name.endswith("bias"):
            entry.view(single).zero_()
    double = single.clone()
    first.view(double).mul_(2)
    one, two = (
        output.view(federation.sum(NAMES, round=number, vector=vector))
        for number, vector in ((1, single), (2, double))
    )
    left = float((two - 2 * one).abs().max())
    assert left > 1e-3 if batch == 6 else left < 1e-6
    assert float(one.abs().max()) > 0.01


def _refusals(federation: Federation, of: Program) -> set[str]:
    """The clauses by which sites refuse a program."""
    link = LocalLink({name: site.service for name, site in federation.sites.items()})
    absent = propose(of, "run2", link, {})[1]
    return {clause for why in absent.values() for clause in re.findall(r"contract\.\w+", why)[:1]}


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
