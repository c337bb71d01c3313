"""The list of revoked sites: signed, and never without one whom a site has seen on it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import authorities
import pytest
from site_runs import Runs, owner
from site_services import SITES, Places

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import revocations
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.membership.kits import AUTHORITY, AUTHORITY_KEY
from fedsight.deploy.membership.revocations import OutdatedError, Revocations, accept
from fedsight.deploy.server import joining


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


def revoke(runs: Runs, site: str) -> None:
    """As `fedsight federation revoke` does."""
    runs.federation.revoke(site, "stolen")
    runs.federation.sign_revocations()


def test_a_list_is_what_the_authority_signed(tmp_path: Path) -> None:
    authorities.give(tmp_path)
    certificate = authorities.show(tmp_path)
    found = Revocations.signed(3, ["oslo", "lyon"], tmp_path / "ca" / AUTHORITY_KEY)
    assert (found.number, found.names) == (3, ("lyon", "oslo"))
    assert found.is_signed(certificate)
    assert Revocations.of(found.table()) == found
    for other in (
        Revocations(4, found.names, found.signature),
        Revocations(3, ("lyon",), found.signature),
        Revocations(3, found.names, "!"),
        Revocations(3, found.names),
    ):
        assert not other.is_signed(certificate)
    assert not found.is_signed(authorities.show(tmp_path / "other", "another"))
    assert Revocations().is_signed(certificate), "before the first revocation"


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"number": 1},
        {"number": True, "names": [], "signature": ""},
        {"number": -1, "names": [], "signature": ""},
        {"number": 1, "names": "lyon", "signature": ""},
        {"number": 1, "names": ["x" * 65], "signature": ""},
        {"number": 1, "names": ["x"] * 2001, "signature": ""},
        {"number": 1, "names": [], "signature": "x" * 5000},
    ],
)
def test_what_is_no_list_is_refused(table: Any, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="list of revocations is invalid"):
        accept(tmp_path, tmp_path / "none", table)


def test_no_list_is_signed_that_no_site_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities.give(tmp_path)
    key = tmp_path / "ca" / AUTHORITY_KEY
    monkeypatch.setattr(revocations, "MAX_NAMES", 3)
    assert Revocations.of(Revocations.signed(1, "abc", key).table()).names == ("a", "b", "c")
    with pytest.raises(DeployError, match="at most 3 names, and this one would have 4"):
        Revocations.signed(1, "abcd", key)


def test_a_site_keeps_the_longest_list_and_refuses_any_that_lacks_one_on_it(tmp_path: Path) -> None:
    authorities.give(tmp_path)
    certificate, key = authorities.show(tmp_path), tmp_path / "ca" / AUTHORITY_KEY
    first, second = (Revocations.signed(n, ["lyon", "oslo"][:n], key) for n in (1, 2))
    accept(tmp_path, certificate, None)
    for shown in (first, second, second, Revocations.signed(1, second.names, key)):
        accept(tmp_path, certificate, shown.table())
    others = (Revocations.signed(n, ["bonn", "oslo", "rome"], key).table() for n in (1, 2, 3))
    for table in (first.table(), None, *others):
        with pytest.raises(OutdatedError, match="which is on the list that this site") as caught:
            accept(tmp_path, certificate, table)
        assert caught.value.held == second
    with pytest.raises(DeployError, match="authority has not signed"):
        accept(tmp_path, certificate, Revocations(9, ("lyon", "oslo")).table())
    assert Revocations.read(tmp_path) == second
    longer = Revocations.signed(1, ["bonn", "lyon", "oslo"], key)
    accept(tmp_path, certificate, longer.table())
    assert Revocations.read(tmp_path) == longer, "whatever its number"


def test_of_jobs_that_accept_lists_at_once_none_is_lost(tmp_path: Path) -> None:
    authorities.give(tmp_path)
    certificate, key = authorities.show(tmp_path), tmp_path / "ca" / AUTHORITY_KEY
    names = [f"s{number:02}" for number in range(12)]
    lists = [Revocations.signed(1, names[: n + 1], key).table() for n in range(len(names))]

    def show(table: Any) -> None:
        with contextlib.suppress(OutdatedError):
            accept(tmp_path, certificate, table)

    threads = [threading.Thread(target=show, args=(table,)) for table in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Revocations.read(tmp_path).names == tuple(names)


def test_of_sites_that_are_revoked_at_once_none_is_lost(tmp_path: Path) -> None:
    authorities.give(tmp_path)
    (tmp_path / "admitted").mkdir()
    names = [f"s{number:02}" for number in range(8)]
    for name in names:
        (tmp_path / "admitted" / f"{name}.toml").touch()
    federation = FederationFolder(tmp_path, Invitation("wards", "localhost", 1, "x"))

    def revoke_one(name: str) -> None:
        federation.revoke(name, "stolen")
        federation.sign_revocations()

    threads = [threading.Thread(target=revoke_one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(federation.revoked()) == names
    assert (federation.revocations.number, federation.revocations.names) == (8, tuple(names))


def test_an_older_backup_does_not_bring_a_revoked_site_back(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, dropped = runs.federation, list[str]()
    # Here is no server. `test_faults_admission.py` has one drop a connection.
    monkeypatch.setattr(joining, "disable_site", lambda folder, site: dropped.append(site))
    revoke(runs, "west")
    assert federation.lists_revoked
    backup = {name: (federation.folder / name).read_bytes() for name in ("revoked.json",)}
    backup["revocations.json"] = (federation.folder / "revocations.json").read_bytes()
    revoke(runs, "south")
    store = runs.begin("before", rounds={"quorum": 1})
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north"]] * 2

    for name, content in backup.items():  # the folder is restored
        (federation.folder / name).write_bytes(content)
    assert federation.admitted() == ["north", "south"]
    store = runs.begin("after", rounds={"quorum": 1})
    outcome = runs.run_job(store)
    assert (outcome["state"], outcome["again"]) == ("failed", False)
    assert "the list of revocations that site 'north' holds names some" in outcome["cause"]
    assert outcome["cause"].endswith("revoked again: south")
    assert outcome["cure"] == "they were taken over: continue with `fedsight resume`"
    assert federation.admitted() == ["north"]
    assert federation.events()[-1]["site"] == "south"
    assert dropped == ["south"]
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north"]] * 2


def test_a_list_that_a_site_made_up_is_not_taken_over(runs: Runs) -> None:
    federation = runs.federation
    for table in (None, 7, Revocations(5, ("north",)).table(), Revocations(0).table()):
        assert federation.take_over(table) is None
    other = federation.folder / "other"
    other.mkdir()
    authorities.give(other, "another")
    made_up = Revocations.signed(5, SITES, other / "ca" / AUTHORITY_KEY)
    assert federation.take_over(made_up.table()) is None
    assert federation.revoked() == {}


def signed(runs: Runs, number: int, *sites: str) -> Revocations:
    return Revocations.signed(number, sites, runs.federation.folder / "ca" / AUTHORITY_KEY)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_list_is_joined_with_the_folders_own_whatever_their_numbers(
    runs: Runs, number: int
) -> None:
    """The folder was restored to before the site's list, and has revoked others since."""
    federation = runs.federation
    held = signed(runs, number, "south")
    revoke(runs, "west")
    revoke(runs, "west")
    assert federation.take_over(held.table()) == ["south"]
    assert federation.revocations.names == ("south", "west")
    assert federation.revocations.number == max(2, number) + 1
    assert federation.revocations.is_signed(federation.folder / "ca" / AUTHORITY)
    assert federation.admitted() == ["north"]
    assert federation.take_over(held.table()) is None, "it names nobody else"


def test_a_run_goes_on_after_a_list_was_joined(runs: Runs) -> None:
    home = runs.places.root / "north"
    signed(runs, 1, "south").write(home)
    revoke(runs, "west")
    store = runs.begin("joined", rounds={"quorum": 1})
    assert runs.run_job(store)["cause"].endswith("revoked again: south")
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north"]] * 2
    assert Revocations.read(home).names == ("south", "west")


def test_without_the_authoritys_key_a_list_is_taken_over_if_none_is_lost_by_it(runs: Runs) -> None:
    federation, key = runs.federation, runs.federation.folder / "ca" / AUTHORITY_KEY
    other, both = signed(runs, 3, "south"), signed(runs, 4, "south", "west")
    revoke(runs, "west")
    key.unlink()
    own = federation.revocations
    assert federation.take_over(other.table()) == ["south"]
    assert federation.admitted() == ["north"], "revoked, though the sites cannot be told"
    assert federation.revocations == own
    assert not federation.lists_revoked
    assert federation.take_over(both.table()) == []
    assert federation.revocations == both
    assert federation.lists_revoked


def test_without_the_authoritys_key_a_run_stops_and_says_so(runs: Runs) -> None:
    signed(runs, 1, "south").write(runs.places.root / "north")
    revoke(runs, "west")
    (runs.federation.folder / "ca" / AUTHORITY_KEY).unlink()
    store = runs.begin("unsigned", rounds={"quorum": 1})
    for _ in range(2):
        outcome = runs.run_job(store)
        assert (outcome["state"], outcome["again"]) == ("failed", False)
        assert "put the authority's key into" in outcome["cure"]
    authorities.give(runs.federation.folder)
    assert runs.run_job(store)["state"] == "failed", "now the list is signed"
    assert runs.run_job(store)["state"] == "finished"


def test_without_the_authoritys_key_a_site_is_revoked_and_the_list_is_not_signed(
    runs: Runs,
) -> None:
    (runs.federation.folder / "ca" / AUTHORITY_KEY).unlink()
    with pytest.raises(DeployError, match=r"key .* cannot be read"):
        revoke(runs, "west")
    assert runs.federation.admitted() == ["north", "south"]
    assert not runs.federation.lists_revoked
    authorities.give(runs.federation.folder)
    revoke(runs, "west")
    assert runs.federation.lists_revoked
    assert runs.federation.revocations.names == ("west",)
