"""The list of revoked sites: signed, numbered, and never older than what a site has seen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import authorities
import pytest
from site_runs import Runs, owner
from site_services import SITES, Places

from fedsight.core.errors import DeployError
from fedsight.deploy.membership.kits import AUTHORITY_KEY
from fedsight.deploy.membership.revocations import OutdatedError, Revocations, accept


@pytest.fixture
def runs(tmp_path: Path, site_images: Path, places: Places) -> Iterator[Runs]:
    """A federation with an authority, whose sites have its certificate."""
    made = Runs(tmp_path, site_images, places)
    authorities.give(made.federation.folder)
    (made.federation.folder / "admitted").mkdir()
    for site in places.names:
        (made.federation.folder / "admitted" / f"{site}.toml").touch()
        authorities.show(places.root / site)
    yield made
    for site in places.names:
        places.write_owner(site, owner(places, site))
        shutil.rmtree(places.root / site / "kit")
        (places.root / site / "revocations.json").unlink(missing_ok=True)


def test_a_list_is_what_the_authority_signed(tmp_path: Path) -> None:
    authorities.give(tmp_path)
    certificate = authorities.show(tmp_path)
    found = Revocations.signed(3, ["oslo", "lyon"], tmp_path / "ca" / AUTHORITY_KEY)
    assert (found.number, found.sites) == (3, ("lyon", "oslo"))
    assert found.is_signed(certificate)
    assert Revocations.of(found.table()) == found
    for other in (
        Revocations(4, found.sites, found.signature),
        Revocations(3, ("lyon",), found.signature),
        Revocations(3, found.sites, "!"),
        Revocations(3, found.sites),
    ):
        assert not other.is_signed(certificate)
    assert not found.is_signed(authorities.show(tmp_path / "other", "another"))
    assert Revocations().is_signed(certificate), "before the first revocation"


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"number": 1},
        {"number": True, "sites": [], "signature": ""},
        {"number": -1, "sites": [], "signature": ""},
        {"number": 1, "sites": "lyon", "signature": ""},
        {"number": 1, "sites": ["x" * 65], "signature": ""},
        {"number": 1, "sites": ["x"] * 1001, "signature": ""},
        {"number": 1, "sites": [], "signature": "x" * 5000},
    ],
)
def test_what_is_no_list_is_refused(table: Any, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="list of revoked sites is invalid"):
        accept(tmp_path, tmp_path / "none", table)


def test_a_site_keeps_the_newest_list_and_refuses_any_other(tmp_path: Path) -> None:
    authorities.give(tmp_path)
    certificate, key = authorities.show(tmp_path), tmp_path / "ca" / AUTHORITY_KEY
    first, second = (Revocations.signed(n, ["lyon", "oslo"][:n], key) for n in (1, 2))
    accept(tmp_path, certificate, None)
    accept(tmp_path, certificate, first.table())
    accept(tmp_path, certificate, second.table())
    accept(tmp_path, certificate, second.table())
    for shown in (first.table(), None, Revocations.signed(2, ["bonn"], key).table()):
        with pytest.raises(OutdatedError, match="this site has seen number 2") as caught:
            accept(tmp_path, certificate, shown)
        assert caught.value.held == second
    with pytest.raises(DeployError, match="not signed by the federation's authority"):
        accept(tmp_path, certificate, Revocations(9, ("oslo",)).table())
    assert Revocations.read(tmp_path) == second


def test_an_older_backup_does_not_bring_a_revoked_site_back(runs: Runs, tmp_path: Path) -> None:
    federation = runs.federation
    federation.revoke("west", "stolen")
    assert federation.lists_revoked
    backup = {name: (federation.folder / name).read_bytes() for name in ("revoked.json",)}
    backup["revocations.json"] = (federation.folder / "revocations.json").read_bytes()
    federation.revoke("south", "left the study")
    store = runs.begin("before", rounds={"quorum": 1})
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north"]] * 2

    for name, content in backup.items():  # the folder is restored
        (federation.folder / name).write_bytes(content)
    assert federation.admitted() == ["north", "south"]
    store = runs.begin("after", rounds={"quorum": 1})
    outcome = runs.run_job(store)
    assert (outcome["state"], outcome["again"]) == ("failed", False)
    assert "site 'north' holds a newer list of revoked sites (number 2)" in outcome["cause"]
    assert outcome["cause"].endswith("revoked again: south")
    assert federation.admitted() == ["north"]
    assert federation.events()[-1]["site"] == "south"
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north"]] * 2


def test_a_list_that_a_site_made_up_is_not_taken_over(runs: Runs) -> None:
    federation = runs.federation
    for table in (None, 7, Revocations(5, ("north",)).table(), Revocations(0).table()):
        assert federation.take_over(table) == []
    other = federation.folder / "other"
    other.mkdir()
    authorities.give(other, "another")
    made_up = Revocations.signed(5, SITES, other / "ca" / AUTHORITY_KEY)
    assert federation.take_over(made_up.table()) == []
    assert federation.revoked() == {}


def test_without_the_authoritys_key_a_site_is_revoked_and_the_list_is_not_signed(
    runs: Runs,
) -> None:
    (runs.federation.folder / "ca" / AUTHORITY_KEY).unlink()
    runs.federation.revoke("west", "stolen")
    assert runs.federation.admitted() == ["north", "south"]
    assert not runs.federation.lists_revoked
    authorities.give(runs.federation.folder)
    runs.federation.revoke("west", "stolen")
    assert runs.federation.lists_revoked
    assert runs.federation.revocations.sites == ("west",)
