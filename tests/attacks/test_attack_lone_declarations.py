"""One admitted site ends any run for good, in nobody's name, by the numbers that it declares.

`rounds.quorum` lets a run go on without sites that fail. But the coordinator built a network for
what a single site declared before it left that site out for disagreeing with the others, and a
number of images that epsilon or the 64-bit sum has no room for was an error of the whole program.
One that just leaves room for the sites that it joins with still was, when another site came. Where
sites have networks of their own, one image was looked at under another network than the site's, and
a site that a group names ended the run by staying away.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attacked_site import CLASSES, program

from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError, FedSightError
from fedsight.data.base import Preprocess
from fedsight.deploy import costly_sites, declaration
from fedsight.deploy.declaration import Declaration, gather, lone_sites
from fedsight.deploy.server import joining
from fedsight.deploy.server.joining import unfit_sites
from fedsight.program import fitting
from fedsight.program.federation import Federation
from fedsight.program.program import Program
from fedsight.program.rounds import Rounds

SIZE = Preprocess(1, 8, 8, "stretch", (0.0,), (0.25,))
HONEST = Declaration((2000, 2000), 100, False, CLASSES, SIZE)
Declared = dict[str, Declaration]
MOST = 1 << 23  # images of each of the two classes
DP = {"privacy": {"name": "example", "epsilon": 3.0, "noise_multiplier": 1.0}}
RIDGE = {"algorithm": {"name": "ridge", "bits": 16}, "rounds": {"rounds": 1, "quorum": 100}}
NUMBERS = pytest.mark.parametrize(
    ("sections", "labels", "count", "why"),
    [
        (DP, (1, 1), 10, "not one round stays within privacy.epsilon"),
        (RIDGE, (MOST, MOST), 130, "may leave 64 bits"),
    ],
)


def sites(count: int, evil: Declaration) -> Declared:
    return {**{f"site{number}": HONEST for number in range(count)}, "evil": evil}


def opened(of: Program, declared: Declared, left_out: dict[str, Any]) -> int:
    """The rounds of the run without the sites that are left out."""
    rest = {name: one for name, one in declared.items() if name not in left_out}
    return Session(gather(of, rest), 1).protection.rounds


def of(root: Path, **sections: Any) -> Program:
    return program(root, **{"rounds": {"rounds": 3, "quorum": 8}, **sections})


def ridge(root: Path) -> Program:
    return of(root, **RIDGE)


def opened_ridge(root: Path, declared: Declared, left_out: dict[str, Any] | None = None) -> int:
    return opened(ridge(root), declared, left_out or {})


@NUMBERS
def test_a_number_of_images_ends_the_run_where_nobody_is_left_out_for_it(
    tmp_path: Path,
    sections: dict[str, Any],
    labels: tuple[int, int],
    count: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "costly_sites", lambda *given: {})
    declared = sites(count, replace(HONEST, labels=labels))
    left_out = unfit_sites(of(tmp_path, **sections), declared, {})
    assert left_out == {}
    with pytest.raises(ConfigError) as found:
        opened(of(tmp_path, **sections), declared, left_out)
    assert "evil" not in str(found.value)


@NUMBERS
def test_ours_leaves_that_site_out_by_name(
    tmp_path: Path, sections: dict[str, Any], labels: tuple[int, int], count: int, why: str
) -> None:
    declared = sites(count, replace(HONEST, labels=labels))
    left_out = unfit_sites(of(tmp_path, **sections), declared, {})
    assert list(left_out) == ["evil"]
    assert "site 'evil' declares" in str(left_out["evil"])
    assert why in str(left_out["evil"])
    assert opened(of(tmp_path, **sections), declared, left_out) == (3 if sections is DP else 1)


def test_a_program_that_suits_no_site_is_not_blamed_on_one(tmp_path: Path) -> None:
    few = replace(HONEST, labels=(1, 1))
    declared = {f"site{number}": few for number in range(10)}
    assert unfit_sites(of(tmp_path, **DP), declared, {}) == {}
    with pytest.raises(ConfigError, match="not one round"):
        opened(of(tmp_path, **DP), declared, {})


def crowded() -> tuple[Declared, Declared]:
    """A run in which one site's number leaves no room, and the sites of its next job."""
    roster = sites(127, replace(HONEST, labels=(MOST, MOST)))
    large = replace(HONEST, labels=(3000, 3000))
    return roster, {**roster, "late1": HONEST, "late2": large, "late3": HONEST}


def test_a_number_that_leaves_no_room_ends_the_run_when_another_site_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costly_sites, "_crowding", lambda *given: {})
    roster, found = crowded()
    assert opened_ridge(tmp_path, roster) == 1
    assert unfit_sites(ridge(tmp_path), found, roster) == {}
    with pytest.raises(ConfigError) as error:
        opened_ridge(tmp_path, found)
    assert "evil" not in str(error.value)


def test_ours_goes_on_without_those_who_come_late_and_says_whose_number_it_is(
    tmp_path: Path,
) -> None:
    roster, found = crowded()
    left_out = unfit_sites(ridge(tmp_path), found, roster)
    assert sorted(left_out) == ["late1", "late2", "late3"]
    why = str(left_out["late1"])
    assert "no room in this run: site 'evil', which joined it before, declares 16,777,216" in why
    assert "revoke site 'evil'" in why
    assert opened_ridge(tmp_path, {**found, **roster}, left_out) == 1


def test_of_those_who_come_late_as_many_join_as_there_is_room_for(tmp_path: Path) -> None:
    roster, found = crowded()
    del roster["site0"], roster["site1"]
    del found["site0"], found["site1"]
    left_out = unfit_sites(ridge(tmp_path), found, roster)
    assert list(left_out) == ["late2"], "it declares the most"
    assert opened_ridge(tmp_path, found, left_out) == 1


def tiny() -> Declared:
    """One image of one pixel, which no `small_cnn` can be built for."""
    size = Preprocess(1, 1, 1, "stretch", (0.0,), (0.25,))
    return sites(10, replace(HONEST, labels=(1, 0), test=0, preprocess=size))


def test_a_size_of_one_sites_own_may_have_no_network_and_that_is_its_own_failure(
    tmp_path: Path,
) -> None:
    cnn = of(tmp_path, model={"name": "small_cnn"})
    with pytest.raises(FedSightError):
        cnn.model.build(1, 1, 1, len(CLASSES), 0)
    assert "what site 'evil' declares" in str(lone_sites(cnn, tiny())["evil"])


def test_ours_builds_none_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cnn = of(tmp_path, model={"name": "small_cnn"})
    asked: list[str] = []

    def looking(of: Program, found: Declared) -> dict[str, Any]:
        asked.extend(found)
        return lone_sites(of, found)

    monkeypatch.setattr(joining, "lone_sites", looking)
    left_out = unfit_sites(cnn, tiny(), {})
    assert list(left_out) == ["evil"]
    assert "prepares images as" in str(left_out["evil"])
    assert "evil" not in asked
    assert opened(cnn, tiny(), left_out) == 3


# Sites that have networks of their own ------------------------------------------------------------

CNN = {"name": "small_cnn", "width": 8, "blocks": 3, "bottleneck": 8}
MIXED = {**CNN, "groups": [{"sites": ["evil", "site0"], "norm": "batch"}]}  # [model] has GroupNorm


def mixed(root: Path, model: dict[str, Any] = MIXED) -> Program:
    return of(root, model=model, algorithm={"name": "fedproto"})


def lone() -> Declared:
    return sites(10, replace(HONEST, labels=(1, 0)))


def test_one_image_ends_the_run_where_another_network_than_the_sites_own_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as weakened:
        weakened.setattr(Federation, "member", lambda self, site: self)
        left_out = unfit_sites(mixed(tmp_path), lone(), {})
    assert left_out == {}
    with pytest.raises(ConfigError, match="site 'evil' has a single training image"):
        opened(mixed(tmp_path), lone(), left_out)


def test_ours_looks_at_the_sites_own_network(tmp_path: Path) -> None:
    left_out = unfit_sites(mixed(tmp_path), lone(), {})
    assert list(left_out) == ["evil"]
    assert opened(mixed(tmp_path), lone(), left_out) == 3


def test_one_image_is_enough_where_other_sites_have_batch_norm(tmp_path: Path) -> None:
    elsewhere = mixed(tmp_path, {**CNN, "groups": [{"sites": ["site0"], "norm": "batch"}]})
    assert unfit_sites(elsewhere, lone(), {}) == {}
    assert opened(elsewhere, lone(), {}) == 3


def absent(root: Path) -> Program:
    """A group names a site that has not come, and a quorum does not need it."""
    return of(root, model={**CNN, "groups": [{"sites": ["evil", "site0"], "width": 4}]})


def test_a_site_that_stays_away_ends_the_run_where_a_group_must_be_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declaration, "group_problems", lambda of, *_: fitting.group_problems(of))
    with pytest.raises(ConfigError, match="no site is called 'evil'"):
        opened(absent(tmp_path), sites(10, HONEST), {"evil": None})


def test_ours_goes_on_without_it(tmp_path: Path) -> None:
    assert opened(absent(tmp_path), sites(10, HONEST), {"evil": None}) == 3
    assert opened(absent(tmp_path), sites(10, HONEST), {}) == 3
    everybody = replace(absent(tmp_path), rounds=Rounds(rounds=3))
    with pytest.raises(ConfigError, match="no site is called 'evil'"):
        opened(everybody, sites(10, HONEST), {"evil": None})
