"""A run folder from somebody else, to whose sums others are to be added, crashes the check.

`algorithm.earlier` names its checkpoint, and `check` compares the settings and the images with the
files beside it. A number in place of a table, or brackets within brackets, ended it with a
traceback where it is to say what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import federations
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from fedsight.algorithms import earlier
from fedsight.core.errors import Problem
from fedsight.data.base import Dataset
from fedsight.program.program import Program

FORM = {"name": "ncm", "high": 4.0}
ODD: tuple[Any, ...] = (3, True, 0.5, "x", "\x1b[2J", [], [1], {}, {"name": [1]}, [[{}]])
DEEP_TOML, DEEP_JSON = "x = " + "[" * 20_000, "[" * 200_000


@pytest.fixture
def of(tmp_path: Path) -> Program:
    """A program that is to change the sums of the run in a folder."""
    save_file({"state.sums": torch.ones(3, dtype=torch.int64)}, tmp_path / "checkpoint.safetensors")
    known = {"earlier": str(tmp_path / "checkpoint.safetensors"), "earlier_sha256": "0" * 64}
    return federations.program(algorithm={**FORM, **known}, rounds={"rounds": 1})


@pytest.fixture
def dataset(of: Program) -> Dataset:
    return of.data.open()


def differences(of: Program, folder: Path, settings: dict[str, Any] | str) -> list[Problem]:
    """What `check` says of a run with these settings."""
    text = settings if isinstance(settings, str) else tomli_w.dumps(settings)
    (folder / "run.toml").write_text(text)
    return list(of.check())


def test_a_number_for_a_table_ends_the_check_where_tables_are_taken_for_granted(
    of: Program, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier, "_section", lambda table, name: table.get(name, {}))
    monkeypatch.setattr(earlier, "json_object", lambda path: json.loads(path.read_text()))
    with pytest.raises(AttributeError):
        differences(of, tmp_path, {"model": 3})
    (tmp_path / "run.json").write_text('{"preprocess": [1]}')
    with pytest.raises(AttributeError):
        of.algorithm.check_data(dataset)
    (tmp_path / "run.json").write_text(DEEP_JSON)
    with pytest.raises(RecursionError):
        of.algorithm.check_data(dataset)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_ours_says_what_differs_whatever_the_files_hold(
    of: Program, dataset: Dataset, tmp_path: Path, odd: Any
) -> None:
    for section in ("model", "algorithm", "secure", "seed"):
        sound = {key: value for key, value in of.table().items() if key in ("model", "algorithm")}
        found = differences(of, tmp_path, {**_plain(sound), section: odd})
        assert section == "secure" or found
    for facts in ({"preprocess": odd, "classes": odd}, odd):
        (tmp_path / "run.json").write_text(json.dumps(facts))
        found = of.algorithm.check_data(dataset)
        assert {problem.where for problem in found} == {"data", "data.classes"}


def test_ours_reads_no_deeper_than_it_can(of: Program, dataset: Dataset, tmp_path: Path) -> None:
    assert differences(of, tmp_path, DEEP_TOML)
    (tmp_path / "run.json").write_text(DEEP_JSON)
    assert len(of.algorithm.check_data(dataset)) > 1


def test_what_is_quoted_of_them_is_short_and_can_be_printed(
    of: Program, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"preprocess": {"fit": "\x1b[2J" * 10_000}}))
    texts = [problem.cause for problem in of.algorithm.check_data(dataset)]
    assert all(text.isprintable() and len(text) < 1000 for text in texts)


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """Without what TOML does not have."""
    return {
        section: {key: value for key, value in own.items() if value is not None}
        for section, own in table.items()
    }
