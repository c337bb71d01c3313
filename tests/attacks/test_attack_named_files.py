"""A proposed program that names a file of the site: whether it is there, and what it holds.

A program that starts from weights looks into their file for the norms that they need, and its
fingerprint depends on them. A site that reads the program would open whatever path it names, and
its answer, that the fingerprint is another, tells what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked_site import AttackedSite, draw, noise_images, program
from safetensors.torch import save_file

from fedsight.deploy.site import service

Attack = Callable[..., AttackedSite]


def told(attack: Attack, tmp_path: Path, file: Path) -> dict[str, object]:
    """What a site answers to a program that names `file`."""
    images = draw(tmp_path / f"images-{file.stem}", noise_images(6))
    site = attack(f"site-{file.stem}", images)
    model = {"name": "small_cnn", "weights": "elsewhere.safetensors", "sha256": "0" * 64}
    of = program(images, model=model)
    table = of.table()
    table["model"]["weights"] = str(file)
    fields = {"run": "run1", "program": table, "fingerprint": of.fingerprint, "sites": 3}
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
    monkeypatch.setattr(service, "without_file", lambda model: model)
    there, absent = (told(attack, tmp_path, file) for file in files)
    assert "the program has the fingerprint" in str(there["error"])
    assert "error" not in absent


def test_ours_open_no_file_that_a_program_names(
    attack: Attack, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    there, absent = (told(attack, tmp_path, file) for file in files)
    assert there == absent
    assert "error" not in there
