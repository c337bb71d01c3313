"""Renewal: for the same keys, never beyond the authority, and what is said before an end."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import authorities
import pytest

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import certificates
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder, Invitation
from fedsight.deploy.membership.hosts import engine_name
from fedsight.deploy.membership.renewal import Ending, endings, renew


@pytest.fixture(params=["localhost"])
def federation(tmp_path: Path, request: pytest.FixtureRequest) -> FederationFolder:
    """A federation with two sites and two operators, whose certificates end in 10 days."""
    folder = tmp_path / "wards"
    for part in ("admitted", "operators"):
        (folder / part).mkdir(parents=True)
    authorities.give(folder)
    server = authorities.give_kit(folder / "server", engine_name(request.param)[:64], "server", 10)
    (server / "client.crt").rename(server / "server.crt")
    authorities.give_kit(folder / "operator", OPERATOR, "lead", 10)
    members = {"admitted/lyon": "client", "admitted/oslo": "client"}
    members |= {f"operators/{OPERATOR}": "lead", "operators/anna@lyon.example": "member"}
    for place, role in members.items():
        path = folder / place
        read_only = str(role == "member").lower()
        record = f'admitted = "2026"\nrequest = "x"\nread_only = {read_only}\n'
        path.with_name(f"{path.name}.toml").write_text(record)
        crt = authorities.certify(path.name, role, 10)
        path.with_name(f"{path.name}.crt").write_bytes(crt)
    own = folder / "operators" / f"{OPERATOR}.crt"
    own.write_bytes((folder / "operator" / "kit" / "startup" / "client.crt").read_bytes())
    return FederationFolder(folder, Invitation("wards", request.param, 1, "x"))


def days(federation: FederationFolder) -> dict[str, int]:
    return {one.name: one.days for one in endings(federation)}


HOSTS = ["localhost", "2001:db8::7", f"{'a' * 60}.example.org"]


@pytest.mark.parametrize("federation", HOSTS, indirect=True)
def test_all_are_renewed_for_the_same_keys(federation: FederationFolder) -> None:
    ring = {one: path.read_bytes() for one in ("*.key",) for path in federation.folder.rglob(one)}
    old = certificates.read(federation.folder / "admitted" / "lyon.crt")
    names = [one.name for one in renew(federation)]
    assert names == [federation.invitation.host, "anna@lyon.example", OPERATOR, "lyon", "oslo"]
    assert days(federation) == {"wards": 999, **dict.fromkeys(names, 824)}
    new = certificates.read(federation.folder / "admitted" / "lyon.crt")
    assert new.public_key() == old.public_key()
    assert new.subject == old.subject
    assert list(new.extensions) == list(old.extensions)
    assert new.serial_number != old.serial_number
    assert new.not_valid_before_utc < datetime.now(UTC)
    kit = federation.operator_kit / "startup" / "client.crt"
    assert kit.read_bytes() == (federation.folder / "operators" / f"{OPERATOR}.crt").read_bytes()
    assert ring == {one: path.read_bytes() for one in ring for path in federation.folder.rglob(one)}
    assert {event["event"] for event in federation.events()} == {"renewed"}


def test_some_are_renewed_and_others_are_not_found(federation: FederationFolder) -> None:
    assert [one.name for one in renew(federation, ["oslo", "oslo"], 100)] == ["oslo"]
    assert days(federation) | {"wards": 0} == {
        **{"wards": 0, "localhost": 9, "anna@lyon.example": 9, OPERATOR: 9, "lyon": 9},
        "oslo": 99,
    }
    with pytest.raises(DeployError, match="'rome' has no certificate of this federation"):
        renew(federation, ["rome"])


@pytest.mark.parametrize("behind", ["admitted/oslo.crt", "operator/kit/startup/client.crt"])
def test_one_that_would_not_end_later_is_left(federation: FederationFolder, behind: str) -> None:
    """Who is named is refused instead: the command would not have done what it was told."""
    name, role = ("oslo", "client") if "oslo" in behind else (OPERATOR, "lead")
    (federation.folder / behind).write_bytes(authorities.certify(name, role, 200))
    before = {path: path.read_bytes() for path in federation.folder.rglob("*.crt")}
    with pytest.raises(DeployError, match=f"valid for at least as long already: {name}") as caught:
        renew(federation, ["lyon", name], days=150)
    assert "give more --days" in caught.value.cure
    assert {path: path.read_bytes() for path in before} == before
    assert not federation.events()
    assert name not in (renewed := [one.name for one in renew(federation, days=150)])
    assert len(renewed) == 4
    assert days(federation)["lyon"] == 149
    assert (federation.folder / behind).read_bytes() == before[federation.folder / behind]
    assert len(renew(federation, days=250)) == 5
    with pytest.raises(DeployError, match="valid for at least as long already: localhost, anna"):
        renew(federation, days=150)


def test_the_operators_kit_may_be_elsewhere(federation: FederationFolder) -> None:
    shutil.rmtree(federation.folder / "operator")
    assert len(renew(federation)) == 5
    assert set(days(federation).values()) == {999, 824}


def test_without_the_authoritys_key_nothing_changes(federation: FederationFolder) -> None:
    """All of its folder is kept off the machine; the server's kit has the certificate, too."""
    shutil.rmtree(federation.folder / "ca")
    with pytest.raises(DeployError, match=r"authority's key .* cannot be read") as caught:
        renew(federation)
    assert "put the authority's key there for a moment" in caught.value.cure
    assert set(days(federation).values()) == {999, 9}


def test_nothing_outlives_the_authority(federation: FederationFolder) -> None:
    with pytest.raises(DeployError, match="for 1,000 days would outlive the authority's") as caught:
        renew(federation, days=1000)
    assert "--days 999" in caught.value.cure
    assert days(federation)["lyon"] == 9
    renew(federation, days=999)
    assert days(federation)["lyon"] == 998


def test_what_is_damaged_is_named_and_the_others_are_not_renewed(
    federation: FederationFolder,
) -> None:
    path = federation.folder / "admitted" / "oslo.crt"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    (broken,) = [one for one in endings(federation) if one.end is None]
    assert (broken.name, broken.soon) == ("oslo", True)
    with pytest.raises(DeployError, match=r"oslo\.crt cannot be read"):
        renew(federation)
    path.write_bytes(authorities.certify("oslo", "client", 10, by="others"))
    with pytest.raises(DeployError, match="is not one of this federation's authority"):
        renew(federation)
    assert days(federation)["lyon"] == 9


@pytest.mark.parametrize(
    ("kind", "left", "soon"),
    [
        *[("site", 30, False), ("site", 29, True), ("site", -1, True)],
        *[("authority", 365, False), ("authority", 364, True)],
    ],
)
def test_warnings_come_in_time(kind: str, left: int, soon: bool) -> None:
    one = Ending(kind, "x", datetime.now(UTC) + timedelta(left), left)  # type: ignore[arg-type]
    assert one.soon == soon
    assert Ending.of(one.table()) == one
