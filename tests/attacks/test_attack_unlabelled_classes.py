"""One admitted site ends any run, in nobody's name, by the classes that it says it does not label.

A program whose loss cannot leave a class out takes no site that does not label all of them, and no
program one that labels none. The coordinator looked at that only once it had all sites together, so
that it was an error of the whole program, quorum or not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attacked_site import CLASSES, program

from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError
from fedsight.data.base import Preprocess
from fedsight.deploy.declaration import Declaration, gather
from fedsight.deploy.server import joining
from fedsight.deploy.server.joining import unfit_sites
from fedsight.program.program import Program

SIZE = Preprocess(1, 8, 8, "stretch", (0.0,), (0.25,))
HONEST = Declaration((20, 20), 10, False, CLASSES, SIZE)
Declared = dict[str, Declaration]
RIDGE = {"algorithm": {"name": "ridge", "bits": 16}, "rounds": {"rounds": 1, "quorum": 2}}
LIES = pytest.mark.parametrize(
    ("sections", "unlabelled"), [(RIDGE, (1,)), ({}, (0, 1)), (RIDGE, (0, 1))]
)


def sites(unlabelled: tuple[int, ...]) -> Declared:
    evil = replace(HONEST, unlabelled=unlabelled)
    return {**{f"site{number}": HONEST for number in range(3)}, "evil": evil}


def of(root: Path, sections: dict[str, Any]) -> Program:
    return program(root, **{"rounds": {"rounds": 3, "quorum": 2}, **sections})


def opened(of: Program, declared: Declared, left_out: dict[str, Any]) -> int:
    """The sites of the run without those that are left out."""
    rest = {name: one for name, one in declared.items() if name not in left_out}
    return len(Session(gather(of, rest), 1).federation.partition)


@LIES
def test_unlabelled_classes_end_the_run_where_nobody_is_left_out_for_them(
    tmp_path: Path,
    sections: dict[str, Any],
    unlabelled: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "mislabelled_sites", lambda *given: {})
    declared, attacked = sites(unlabelled), of(tmp_path, sections)
    left_out = unfit_sites(attacked, declared, {})
    assert left_out == {}
    with pytest.raises(ConfigError):
        opened(attacked, declared, left_out)


@LIES
def test_ours_leaves_that_site_out_by_name(
    tmp_path: Path, sections: dict[str, Any], unlabelled: tuple[int, ...]
) -> None:
    declared, attacked = sites(unlabelled), of(tmp_path, sections)
    left_out = unfit_sites(attacked, declared, {})
    assert list(left_out) == ["evil"]
    assert "site 'evil' declares classes that it does not label" in str(left_out["evil"])
    assert opened(attacked, declared, left_out) == 3


def test_a_site_that_does_not_label_all_takes_part_where_the_program_can_leave_a_class_out(
    tmp_path: Path,
) -> None:
    declared, honest = sites((1,)), of(tmp_path, {})
    assert unfit_sites(honest, declared, {}) == {}
    assert opened(honest, declared, {}) == 4
