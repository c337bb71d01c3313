"""A proposed program that names a file of the site: whether it is there, and what it holds.

A program that starts from weights looks into their file for the norms that they need, and its
fingerprint depends on them. A site that reads the program would open whatever path it names, and
its answer, that the fingerprint is another, tells what was found. A program that changes the sums
of an earlier run names a checkpoint, and the facts about that run lie in `run.json` beside it: a
site that compared them with its images sent a value of that file back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, draw, noise_images, program
from safetensors.torch import save_file

from fedsight.algorithms.closed_form import ClosedForm
from fedsight.core.package import installed
from fedsight.deploy.site import enforcement
from fedsight.deploy.site.named_files import ELSEWHERE
from fedsight.program.config import parse
from fedsight.program.program import Program

NAME = "site-00"  # of the first site of a split
Attack = Callable[..., AttackedSite]


def read_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that leave the files in which a program names."""
    monkeypatch.setattr(enforcement, "without_files", dict)
    monkeypatch.setattr(enforcement, "refuse_files", lambda *_: None)


def told(attack: Attack, tmp_path: Path, file: Path) -> dict[str, object]:
    """What a site answers to a program that names `file`."""
    images = draw(tmp_path / f"images-{file.stem}", noise_images(6))
    site = attack(f"site-{file.stem}", images)
    model = {"name": "small_cnn", "weights": "elsewhere.safetensors", "sha256": "0" * 64}
    of = program(images, model=model)
    table = of.table()
    table["model"]["weights"] = str(file)
    fields = {"run": "run1", "program": table, "fingerprint": of.fingerprint, "sites": 3}
    fields["package"] = installed().table()
    answer = site.ask("propose", fields)[0]
    return {key: value for key, value in answer.items() if key != "ticket"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """One that is there, and one that is not."""
    there = tmp_path / "there.safetensors"
    save_file({"norm.running_var": torch.ones(2)}, there)
    return there, tmp_path / "absent.safetensors"


def test_the_answer_tells_of_a_file_where_programs_are_read_as_they_come(
    attack: Attack, tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_as_they_come(monkeypatch)
    there, absent = (told(attack, tmp_path, file) for file in files)
    assert "the program has the fingerprint" in str(there["error"])
    assert "error" not in absent


def test_ours_open_no_file_that_a_program_names(
    attack: Attack, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    there, absent = (told(attack, tmp_path, file) for file in files)
    assert there == absent
    assert "error" not in there


def of_sums(root: Path, earlier: Path | None) -> Program:
    """A program for sites that share a sample; its sums are added to those of an earlier run."""
    algorithm: dict[str, Any] = {"name": "ridge"}
    if earlier is not None:
        algorithm |= {"earlier": str(earlier), "earlier_sha256": "0" * 64}
    table = {
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "iid", "sites": 2},
        "model": {"name": "small_cnn", "width": 4, "blocks": 2},
        "algorithm": algorithm,
        "rounds": {"rounds": 1},
    }
    return parse(table, root)[0]


def joined(attack: Attack, tmp_path: Path, earlier: Path | None) -> str:
    """What a site that shares the sample says to it."""
    site = attack(f"{len(list(tmp_path.iterdir()))}/{NAME}", {"name": "fashion-mnist-12k"})
    return str(site.join(of_sums(tmp_path, earlier)).get("error", "joined"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside something that a program may call a checkpoint."""
    facts = {"preprocess": {"channels": "patient 4711"}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    return tmp_path / "checkpoint.safetensors"


def test_a_value_of_a_file_leaves_where_the_earlier_run_is_looked_for(
    attack: Attack, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_as_they_come(monkeypatch)
    monkeypatch.setattr(ClosedForm, "fresh", lambda self: self)
    assert "patient 4711" in joined(attack, tmp_path, secret)


def test_an_honest_run_is_refused_where_its_earlier_run_is_looked_for(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClosedForm, "fresh", lambda self: self)
    assert "of the earlier run have another" in joined(attack, tmp_path, Path(ELSEWHERE))


def test_ours_look_for_no_earlier_run(attack: Attack, tmp_path: Path, secret: Path) -> None:
    beside = tmp_path / "folder"
    beside.mkdir()
    os.mkfifo(beside / "run.json")  # which a site would wait for, for ever
    for earlier in (None, secret, beside / "checkpoint.safetensors", Path(ELSEWHERE)):
        assert joined(attack, tmp_path, earlier) == "joined"


def told_of_trace(attack: Attack, tmp_path: Path, file: Path) -> dict[str, object]:
    """What a site answers to a program whose availability trace is `file`."""
    images = draw(tmp_path / f"images-{file.stem}", noise_images(6))
    site = attack(f"site-{file.stem}", images)
    of = program(images, participation={"name": "trace", "file": "elsewhere.csv"})
    table = of.table()
    table["participation"]["file"] = str(file)
    fields = {"run": "run1", "program": table, "fingerprint": of.fingerprint, "sites": 3}
    fields["package"] = installed().table()
    answer = site.ask("propose", fields)[0]
    return {key: value for key, value in answer.items() if key != "ticket"}


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Path, Path]:
    """A trace that is there, and one that is not."""
    there = tmp_path / "there.csv"
    there.write_text("site,from,until\nward-9,0,8\n")
    return there, tmp_path / "absent.csv"


def test_a_trace_is_read_where_programs_are_read_as_they_come(
    attack: Attack, tmp_path: Path, traces: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_as_they_come(monkeypatch)
    there, absent = (told_of_trace(attack, tmp_path, file) for file in traces)
    assert "the program has the fingerprint" in str(there["error"])
    assert "the program is for a simulation" in str(absent["error"]), "other words: it is not there"


def test_ours_read_no_trace(attack: Attack, tmp_path: Path, traces: tuple[Path, Path]) -> None:
    there, absent = (told_of_trace(attack, tmp_path, file) for file in traces)
    assert there == absent
