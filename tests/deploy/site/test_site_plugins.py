"""A site runs no code from outside FedSight but the files whose hashes its owner permitted."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import federations
import pytest
import site_services
from site_services import Places

from fedsight.deploy.server.job import program_for_sites, propose
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


def refusals(places: Places, of: Program) -> dict[str, str]:
    _, absent = propose(of, "plugged", places.sit(), {})
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
