"""A coordinator makes a site hold more than its contract and the run's network need.

The first piece of a vector said how long the vector would be, and so much was allocated: one byte
announced gigabytes, thrice, before any run was permitted. And parameters that do not travel were
written to the disk before anybody looked at `contract.disk` or at the network. What was refused
then stayed, and every later run was refused for the space that it took.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.core.errors import SiteError
from fedsight.deploy.site.enforcement import ContractEnforcement
from fedsight.deploy.site.incoming import IncomingVectors
from fedsight.deploy.site.memories import occupied
from fedsight.deploy.site.trainer import Opened
from fedsight.deploy.site.trainer_process import SiteTrainer
from fedsight.governance.contract import GIGABYTE
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
ANNOUNCED = 64 << 20
DISK = 0.001  # GB


class Anything(dict[str, int]):
    """Lengths of which none is too large."""

    def get(self, name: str, default: Any = None) -> int:
        return 8 << 30


def held(site: AttackedSite) -> int:
    """Bytes of the vectors that a site waits for."""
    return sum(len(one.data) for one in site.service._incoming._newest.values())


def announce(site: AttackedSite) -> list[str]:
    """Send one byte of each vector, of 64 MiB; the refusals."""
    found = []
    for name in ("vector", "extras", "kept"):
        header = {"name": name, "mark": 1, "start": 0, "total": ANNOUNCED}
        found.append(site.ask("piece", header, b"x")[0].get("error", ""))
    return found


@pytest.fixture
def boundless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are as long as the coordinator says."""
    add = IncomingVectors.add
    monkeypatch.setattr(
        IncomingVectors,
        "add",
        lambda self, fields, body, lengths: add(self, fields, body, Anything()),
    )


def personal(images: Path) -> Program:
    """Whose head stays at the site."""
    return program(images, algorithm={"name": "fedrep"})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", noise_images(6))


@pytest.mark.usefixtures("boundless")
def test_a_byte_that_announces_a_vector_allocates_it(attack: Attack, images: Path) -> None:
    site = attack("weak", images)
    assert "error" not in site.join(program(images))
    assert announce(site) == ["", "", ""]
    assert held(site) == 3 * ANNOUNCED


def test_ours_allocate_what_the_network_needs_and_nothing_without_a_run(
    attack: Attack, images: Path
) -> None:
    site = attack("ours", images)
    assert announce(site) == 3 * ["this site has not joined a run yet"]
    assert "error" not in site.join(personal(images))
    assert all("does not fit" in one for one in announce(site))
    assert held(site) == 0
    federation = known(personal(images))
    assert "error" not in site.train(federation.initial[federation.layout.travelling])[0]
    assert held(site) == 4 * federation.layout.travelling.stop


def adopted(site: AttackedSite, of: Program, images: Path) -> tuple[dict[str, Any], int, str]:
    """Of values that no network has: the answer; what is occupied; what an honest run hears."""
    before = occupied(site.home)
    answer = site.adopt(torch.zeros(int(2 * DISK * GIGABYTE) // 4))
    grown = occupied(site.home) - before
    honest = program(images, train={"lr": 0.05})
    return answer, grown, site.join(honest, "honest").get("error", "")


@pytest.mark.usefixtures("boundless")
def test_what_a_network_has_no_place_for_fills_the_disk_where_it_is_written_first(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContractEnforcement, "check_room", lambda self, more: None)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    init = SiteTrainer.__init__

    def sized(self: SiteTrainer, setup: Any) -> None:
        init(self, setup)
        lengths = {**self.opened.lengths, "kept": int(2 * DISK * GIGABYTE) // 4 * 4}
        object.__setattr__(self.opened, "lengths", lengths)

    monkeypatch.setattr(SiteTrainer, "__init__", sized)
    site, of = attack("weak", images, disk=DISK), personal(images)
    assert "error" not in site.join(of)
    answer, grown, heard = adopted(site, of, images)
    assert "that do not travel" in answer["error"]
    assert grown > DISK * GIGABYTE
    assert "contract.disk" in heard


def test_ours_write_nothing_that_the_network_has_no_place_for(attack: Attack, images: Path) -> None:
    site, of = attack("ours", images, disk=DISK), personal(images)
    assert "error" not in site.join(of)
    answer, grown, heard = adopted(site, of, images)
    assert "error" in answer
    assert (grown, heard) == (0, "")
    federation = known(of)
    kept = federation.initial[federation.layout.kept]
    assert "error" not in site.join(of)
    assert "error" not in site.adopt(kept), "an honest coordinator's are taken"


def test_ours_write_nothing_that_the_contract_has_no_room_for(attack: Attack, images: Path) -> None:
    of = personal(images)
    kept = known(of).initial[known(of).layout.kept]
    site = attack("measure", images)
    site.join(of)
    room = occupied(site.home) + 2 * kept.numel()  # half of what it takes
    site = attack("ours", images, disk=room / GIGABYTE)
    assert "error" not in site.join(of)
    before = occupied(site.home)
    assert "contract.disk" in site.adopt(kept)["error"]
    assert occupied(site.home) == before
    assert "error" not in site.join(of, "next")


def test_what_the_trainer_refuses_takes_no_room(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, of = attack("ours", images), personal(images)
    assert "error" not in site.join(of)
    before = occupied(site.home)

    def refuse(self: Any) -> Opened:
        raise SiteError("these are of no use", "send others")

    monkeypatch.setattr(type(site.service), "_open", refuse)
    assert "of no use" in site.adopt(known(of).initial[known(of).layout.kept])["error"]
    assert occupied(site.home) == before
