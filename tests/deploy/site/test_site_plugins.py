"""A site runs no code from outside FedSight but the files whose hashes its owner permitted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
from site_services import Places

from fedsight.core.errors import ConfigError
from fedsight.core.package import installed
from fedsight.deploy.server.joining import program_for_sites, propose, send_kept
from fedsight.deploy.site.owner import parse_owner, read_owner
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import OpenData, Trainer
from fedsight.program import plugins
from fedsight.program.federation import federate
from fedsight.program.program import Program

PLUGIN = Path(__file__).parents[2] / "runs" / "parts" / "algorithm.py"
SHA256 = hashlib.sha256(PLUGIN.read_bytes()).hexdigest()


def program(images: Path, plugin: Path) -> Program:
    algorithm = {"name": "shortened", "factor": 0.5}
    return site_services.program(images, plugins=[str(plugin)], algorithm=algorithm)


@pytest.fixture
def owners(places: Places, site_images: Path) -> Iterator[Places]:
    """The sites; their owners' files are as before at the end."""
    kept = {site: (places.root / site / "owner.toml").read_text() for site in places.names}
    yield places
    for site, text in kept.items():
        (places.root / site / "owner.toml").write_text(text)
        shutil.rmtree(places.root / site / "plugins", ignore_errors=True)


def permit(places: Places, images: Path, *hashes: str) -> None:
    for site in places.names:
        data = {"name": "folder", "path": str(images / site)}
        places.write_owner(site, {"data": data, "contract": {"plugins": list(hashes)}})


def install(places: Places, images: Path, plugin: Path) -> None:
    """Let every owner permit the file, and copy it to the site."""
    permit(places, images, hashlib.sha256(plugin.read_bytes()).hexdigest())
    for site in places.names:
        (places.root / site / "plugins").mkdir()
        shutil.copy(plugin, places.root / site / "plugins")


def refusals(places: Places, of: Program) -> dict[str, str]:
    _, absent, _, _ = propose(of, "plugged", places.sit(), {})
    return absent


def test_permitted_code_trains_at_the_sites_with_the_simulations_bits(
    owners: Places, site_images: Path, tmp_path: Path
) -> None:
    of = program(site_images, PLUGIN)
    permit(owners, site_images, SHA256.upper())
    for site in owners.names:
        (owners.root / site / "plugins").mkdir()
        shutil.copy(PLUGIN, owners.root / site / "plugins" / "under_another_name.py")
    federation, link = owners.meet(of)
    found = site_services.learn(federation, link, federations.Diary())
    expected = federations.learn(federate(of))
    assert federations.sha(found.vector) == federations.sha(expected.vector)


def test_code_that_no_owner_permitted_is_never_imported(
    owners: Places, site_images: Path, tmp_path: Path
) -> None:
    """Not even when the coordinator names a file that lies on the site's own disk."""
    trap, sprung = tmp_path / "trap.py", tmp_path / "sprung"
    trap.write_text(f"{PLUGIN.read_text()}\nopen({str(sprung)!r}, 'w').close()\n")
    of = program(site_images, trap)
    sprung.unlink()  # the coordinator itself has imported it
    for site in owners.names:
        (owners.root / site / "plugins").mkdir()
        shutil.copy(trap, owners.root / site / "plugins" / "trap.py")
    permit(owners, site_images, SHA256)
    absent = refusals(owners, of)
    assert absent.keys() == set(owners.names)
    assert all("contract.plugins" in why for why in absent.values())
    assert not sprung.exists()


def test_permitted_code_that_is_not_there_is_asked_for(owners: Places, site_images: Path) -> None:
    permit(owners, site_images, SHA256)
    for why in refusals(owners, program(site_images, PLUGIN)).values():
        assert SHA256 in why
        assert "not at this site" in why


def test_a_file_that_was_changed_is_not_the_permitted_one(
    owners: Places, site_images: Path
) -> None:
    permit(owners, site_images, SHA256)
    for site in owners.names:
        (owners.root / site / "plugins").mkdir()
        changed = PLUGIN.read_text().replace("0.5", "0.6")
        (owners.root / site / "plugins" / PLUGIN.name).write_text(changed)
    absent = refusals(owners, program(site_images, PLUGIN))
    assert all("not at this site" in why for why in absent.values())
    assert absent.keys() == set(owners.names)


def test_sites_are_told_hashes_and_no_path_of_the_coordinator(site_images: Path) -> None:
    table = program_for_sites(program(site_images, PLUGIN))
    assert table["plugins"] == [{"sha256": SHA256}]
    assert str(PLUGIN.parent) not in str(table)


def test_what_else_lies_in_the_folder_does_no_harm(
    owners: Places, site_images: Path, tmp_path: Path
) -> None:
    """A directory, a dangling link, a pipe that nobody writes to; and a link out of the folder."""
    permit(owners, site_images, SHA256)
    for site in owners.names:
        folder = owners.root / site / "plugins"
        (folder / "a_folder.py").mkdir(parents=True)
        (folder / "dangling.py").symlink_to(tmp_path / "nothing.py")
        (folder / "device.py").symlink_to("/dev/zero")
        os.mkfifo(folder / "pipe.py")
        (folder / "elsewhere.py").symlink_to(PLUGIN)
    of = program(site_images, PLUGIN)
    assert all("not at this site" in why for why in refusals(owners, of).values())
    for site in owners.names:
        shutil.copy(PLUGIN, owners.root / site / "plugins" / "mine.py")
    assert refusals(owners, of) == {}


def proposal(of: Program, *hashes: Any) -> str:
    """The header of a proposal with these plug-ins, made without importing them; a site that
    imports them refuses it because of its fingerprint."""
    table = {**program_for_sites(of), "plugins": [{"sha256": one} for one in hashes]}
    package = installed().table()
    fields = {"run": "r1", "sites": 3, "fingerprint": "0" * 64, "program": table}
    return json.dumps({**fields, "package": package})


@contextlib.contextmanager
def service(home: Path) -> Iterator[SiteService]:
    """A site service that ends with the block."""
    found = SiteService(home, home.name)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize(
    "named", [None, "", "../plugins/mine.py", SHA256[:12], f"{SHA256}0", f" {SHA256}", [SHA256], {}]
)
def test_a_plug_in_is_named_by_a_whole_hash(owners: Places, site_images: Path, named: Any) -> None:
    install(owners, site_images, PLUGIN)
    header = proposal(site_services.program(site_images), named)
    with service(owners.root / "north") as site:
        text, _ = site.answer("propose", header, b"")
    assert "without a valid SHA-256" in json.loads(text)["error"]


def test_nothing_is_imported_for_an_operator_whom_the_contract_does_not_permit(
    owners: Places, site_images: Path, tmp_path: Path
) -> None:
    home, sprung, trap = owners.root / "north", tmp_path / "sprung", tmp_path / "trap.py"
    trap.write_text(f"{PLUGIN.read_text()}\nopen({str(sprung)!r}, 'w').close()\n")
    install(owners, site_images, trap)
    sha256 = hashlib.sha256(trap.read_bytes()).hexdigest()
    data = {"name": "folder", "path": str(site_images / "north")}
    contract = {"plugins": [sha256], "operators": ["anna@wards"]}
    owners.write_owner("north", {"data": data, "contract": contract})
    header = proposal(site_services.program(site_images), sha256)
    with service(home) as site:
        text, _ = site.answer("propose", header, b"")
        assert "contract.operators" in json.loads(text)["error"]
        assert not sprung.exists()
        owners.write_owner("north", {"data": data, "contract": {"plugins": [sha256]}})
        text, _ = site.answer("propose", header, b"")
    assert "has the fingerprint" in json.loads(text)["error"]
    assert sprung.exists()


def test_a_proposal_that_comes_twice_imports_its_plug_ins_once(
    owners: Places, site_images: Path, tmp_path: Path
) -> None:
    """The coordinator asks again when an answer was lost; the first one may still be importing."""
    slow, times = tmp_path / "slow.py", tmp_path / "times"
    slow.write_text(
        f"import time\nwith open({str(times)!r}, 'a') as file:\n    file.write('x')\n"
        f"time.sleep(0.5)\n{PLUGIN.read_text().replace('from __future__ import annotations', '')}"
    )
    install(owners, site_images, slow)
    sha256 = hashlib.sha256(slow.read_bytes()).hexdigest()
    header = proposal(site_services.program(site_images), sha256)
    with service(owners.root / "north") as site, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: site.answer("propose", header, b"")[0], range(4)))
    assert all("has the fingerprint" in json.loads(text)["error"] for text in answers)
    assert times.read_text() == "x"


def opening(places: Places, of: Program, folder: Path) -> OpenData:
    """What the trainer of the site `north` is told to open."""
    folder.mkdir(exist_ok=True)
    (folder / ".lease").write_text("token")
    owner = read_owner(places.root / "north" / "owner.toml", None)
    return OpenData(of, owner, "north", folder, "token", None)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    found = Trainer(tmp_path / "trainer.txt")
    yield found
    found.close()


def test_a_trainer_gets_the_plug_ins_of_its_own_program(
    places: Places, site_images: Path, tmp_path: Path, trainer: Trainer
) -> None:
    """Whatever program was read since, and whatever the trainer had before."""
    other = tmp_path / "algorithm.py"  # registers the same name
    other.write_text(f"{PLUGIN.read_text()}\n# another version\n")
    first, second = program(site_images, PLUGIN), program(site_images, other)
    site_services.program(site_images)
    for of in (first, second, first):
        command = opening(places, of, tmp_path / "memory")
        assert trainer.ask(command, "opening its images").declaration.train == 14


def test_a_plug_in_that_the_trainer_cannot_import_is_named(
    places: Places, site_images: Path, tmp_path: Path, trainer: Trainer
) -> None:
    switch, moody = tmp_path / "switch", tmp_path / "moody.py"
    code = PLUGIN.read_text().replace("from __future__ import annotations", "import os")
    moody.write_text(
        f"{code}\nif os.path.exists({str(switch)!r}):\n    raise OSError('no licence')\n"
    )
    of = program(site_images, moody)
    switch.touch()
    with pytest.raises(ConfigError) as caught:
        trainer.ask(opening(places, of, tmp_path / "memory"), "opening its images")
    assert "no licence" in caught.value.problems[0].cause
    switch.unlink()
    command = opening(places, of, tmp_path / "memory")
    assert trainer.ask(command, "opening its images").declaration.train == 14


BACKWARDS = """
from fedsight import register
from fedsight.algorithms.scaffold import Scaffold

@register("backwards")
class Backwards(Scaffold):
    "SCAFFOLD whose payload is not made in the order in which it names the parts."

    parts = ("control", "delta")
"""
STARTED = """
from torch import nn
from fedsight import Model, register

@register("started")
class Started(Model):
    "A network that starts from weights of its own, which the sites need not have."

    pretrained: bool = True
    width: int
    blocks: int

    def make(self, channels, height, width, classes):
        pixels, width = channels * height * width, self.width
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, classes)
        )
        if self.pretrained:
            nn.init.uniform_(module[1].weight, 0.1, 0.2)
        return module, ["3"]

    def fresh(self):
        return super().fresh().model_copy(update={"pretrained": False})
"""


@pytest.mark.parametrize(
    ("code", "sections"),
    [
        (BACKWARDS, {"algorithm": {"name": "backwards"}}),
        (STARTED, {"model": {"name": "started"}, "train": {"only": ["head"]}}),
    ],
    ids=["parts in another order", "frozen weights of the model's own"],
)
def test_parts_from_outside_have_the_simulations_bits_too(
    owners: Places, site_images: Path, tmp_path: Path, code: str, sections: dict[str, Any]
) -> None:
    path = tmp_path / "outside.py"
    path.write_text(code)
    install(owners, site_images, path)
    of = site_services.program(site_images, plugins=[str(path)], **sections)
    expected = federations.learn(federate(of))
    federation, link = owners.meet(of)
    absent: dict[str, str] = {}
    send_kept(federation, link, absent)
    found = site_services.learn(federation, link)
    assert absent == {}
    assert federations.sha(found.vector) == federations.sha(expected.vector)


def test_the_fingerprint_counts_a_content_once(site_images: Path) -> None:
    of = program(site_images, PLUGIN)
    (plugin,) = of.plugins
    copy = replace(plugin, path=Path("/elsewhere/copy.py"))
    assert replace(of, plugins=(plugin, copy)).fingerprint == of.fingerprint
    assert plugins.files_of(replace(of, plugins=(plugin, copy))) == plugins.files_of(of)


@pytest.mark.parametrize("written", [SHA256[:12], f"sha256:{SHA256}", "my_parts.py", ""])
def test_an_owner_who_writes_no_whole_hash_is_told_so(written: str) -> None:
    table = {"data": {"name": "fashion-mnist-12k"}, "contract": {"plugins": [written]}}
    with pytest.raises(ConfigError, match="not a SHA-256"):
        parse_owner(table, Path("/"))
    table["contract"] = {"plugins": [f" {SHA256.upper()}\n"]}
    assert parse_owner(table, Path("/")).contract.plugins == (SHA256,)
