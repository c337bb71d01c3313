"""Memory that one program leaves at a site and another sends.

Under `local`, noise is added to what leaves; SCAFFOLD's control variate stays, exact. A second run
of the same name, under DP-SGD with a tiny clip, adds nearly no noise to its steps, and every step
goes along the control variate that the site remembers: the update is the secret.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program, values
from safetensors.torch import load_file

from fedsight.core.files import make_folder
from fedsight.deploy.site import enforcement, memories
from fedsight.governance.contract import Contract
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", noise_images(6))


def shared(home: Path, of: Program, run: str, contract: Contract) -> Path:
    """Memory under the run's name alone, as the first version had it."""
    folder = home / "memory" / run
    make_folder(folder)
    return folder


def likeness(site: AttackedSite, images: Path) -> float:
    """The cosine of the second run's update and the control variate that the first one left."""
    algorithm = {"name": "scaffold"}
    quiet = program(
        images, algorithm=algorithm, privacy={"name": "local", "noise_multiplier": 20.0}
    )
    tiny = {"name": "example", "noise_multiplier": 20.0, "clip": 1e-6}
    loud = program(images, algorithm=algorithm, privacy=tiny)
    model = Model(known(quiet)).travelling
    nothing = {"control": torch.zeros_like(model)}
    site.join(quiet)
    site.train(model, nothing)
    (path,) = (site.home / "memory").rglob("*.safetensors")
    secret = load_file(path)["control"]
    site.join(loud)
    _, data = site.train(model, nothing, round=2, accepted=1)
    update = values(data)[: len(model)]
    return abs(float(torch.cosine_similarity(update, secret, dim=0)))


def test_memory_under_the_runs_name_alone_is_sent_by_the_next_program(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforcement, "open_memory", shared)
    assert likeness(attack("weak", images), images) > 0.99


@pytest.mark.parametrize("share", [False, True])
def test_memory_belongs_to_its_program(attack: Attack, images: Path, share: bool) -> None:
    """Even if the owner lets programs share: one to which the site adds noise shares nothing."""
    assert likeness(attack("ours", images, share_memory=share), images) < 0.1


def test_memory_travels_between_programs_only_if_the_owner_says_so(
    attack: Attack, images: Path
) -> None:
    one, other = (
        program(images, algorithm={"name": "scaffold"}, rounds={"rounds": rounds})
        for rounds in (3, 4)
    )
    model = Model(known(one)).travelling
    for share in (False, True):
        site = attack(f"share{share}", images, share_memory=share)
        site.join(one)
        site.train(model, {"control": torch.zeros_like(model)})
        site.join(other)
        kept = memories.folder_of(site.home, other, "run1")
        assert (kept / site.home.name / "000001.safetensors").exists() == share
        assert not (kept / "answers").exists()
