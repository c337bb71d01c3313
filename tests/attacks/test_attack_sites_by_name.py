"""One program that names a site, and in which all others learn next to nothing.

Keys are bound to the program, so that no site learns under another than its fellows. But a program
may treat sites by their names: in virtual time each has a pace of its own, and with partial work
one that would be late trains for fewer epochs. The coordinator lets one site do hundreds of them,
and all others a single one. Their updates are a few millionths of its, and the masked sum is its
update. The operator's own command refuses such a program for a federation; the coordinator need not
use it. Ours refuses it at the site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import masked_round
import pytest
from attacked_site import AttackedSite, known, program
from masked_round import MaskedRound, in_the_clear, masked_sites
from pydantic import BaseModel

from fedsight.core.types import Order
from fedsight.data.base import PROGRAM_KEYS, sources
from fedsight.data.by_site import Form
from fedsight.participation.timing import Timing
from fedsight.program import taking_part
from fedsight.program.config import BASES, SECTIONS
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
SLOW, FAST = {"images_per_second": 1e-3}, {"images_per_second": 1e9}


def naming(images: Path) -> Program:
    """A program under which `a` trains for 300 epochs and all others for one."""
    return program(
        images,
        secure={"name": "secagg"},
        train={"epochs": 300, "lr": 1e-3, "momentum": 0.99},
        timing={"partial": True, **SLOW, "groups": [{"sites": ["a"], **FAST}]},
    )


def test_the_sum_is_one_update_where_a_program_may_name_a_site(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_part, "elsewhere", lambda program: [])
    sites, of = masked_sites(attack, tmp_path, NAMES), naming(tmp_path / "images-a")
    for site in sites:
        assert "error" not in site.join(of)
    plain = known(replace(of, timing=Timing()))  # the attacker's own view, without the names
    monkeypatch.setattr(masked_round, "known", lambda of: plain)
    attacker = MaskedRound(sites, of, Order(1, plain.initial))
    found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    target = in_the_clear(sites[0], of, attacker.order)
    assert target.abs().max() > 0.1
    assert (found - target).norm() < 1e-3 * target.norm()


@pytest.mark.parametrize(
    "timing",
    [
        {"partial": True, **SLOW, "groups": [{"sites": ["a"], **FAST}]},
        {"partial": True, **SLOW, "spread": 5.0},  # a pace that follows from seed and name
        {"groups": [{"sites": ["a"], "delay_seconds": 1e6}], "partial": True},
    ],
)
def test_ours_take_no_part_in_a_program_with_virtual_time(
    attack: Attack, tmp_path: Path, timing: dict[str, Any]
) -> None:
    site = masked_sites(attack, tmp_path, ["a"])[0]
    of = program(tmp_path / "images-a", secure={"name": "secagg"}, timing=timing)
    answer = site.join(of)
    assert answer["error"].startswith("the program is for a simulation: the sites of a federation")


def names_of(kind: type[BaseModel], path: str) -> set[str]:
    """The settings below `kind` that name sites: their dotted keys."""
    found = set()
    for key, field in kind.model_fields.items():
        place = f"{path}.{key}"
        if key in ("site", "sites") and field.annotation is not int:
            found.add(place)
        for inner in inside(field.annotation):
            found |= names_of(inner, place)
    return found


def inside(annotation: Any) -> set[type[BaseModel]]:
    """The kinds of settings in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {kind for one in get_args(annotation) for kind in inside(one)}


def test_no_other_setting_of_a_program_names_sites() -> None:
    """Each that does is refused at the sites, or by their contract; a new one needs an answer."""
    kinds = {
        section: [kind] if isinstance(kind, type) else everything(kind[0], BASES[kind[0].kind])
        for section, kind in SECTIONS.items()
        if section not in ("data", "split")  # the owner's; and simulated sites'
    }
    found = {
        name for section, some in kinds.items() for one in some for name in names_of(one, section)
    }
    assert found == {
        "model.groups.sites",  # refused under masks, but for fedproto, which keeps memory
        "participation.spans.site",
        "timing.groups.sites",
    }


def everything(registry: Any, base: type[BaseModel]) -> list[type[BaseModel]]:
    return [base, *map(registry.get, registry.names())]


def test_what_a_source_says_site_by_site_is_the_owners() -> None:
    hints = {
        key: one
        for kind in map(sources.get, sources.names())
        for key, one in get_type_hints(kind, include_extras=True).items()
    }
    found = {key for key, one in hints.items() if is_by_site(one)}
    assert {"labelled", "site_mean", "site_std", "class_map", "unknown_class"} <= found
    assert not found & PROGRAM_KEYS


def is_by_site(annotation: Any) -> bool:
    inner = get_args(annotation)
    return any(isinstance(one, Form) and "by site" in one.words for one in inner) or any(
        map(is_by_site, inner)
    )
