"""The members of a federation: keys, kits, admission and revocation, by FLARE's own tools."""

from __future__ import annotations

import json
import re
import stat
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from clocks import heard_ago, set_clock
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DeployError, StoreError
from fedsight.deploy.membership import certificates, kits, presence
from fedsight.deploy.membership.federation import (
    OPERATOR,
    FederationFolder,
    Invitation,
)
from fedsight.deploy.membership.kits import write_policies
from fedsight.deploy.membership.operator_folder import OperatorFolder, act_as
from fedsight.deploy.membership.renewal import renew
from fedsight.deploy.membership.requests import SigningRequest, check_name
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.owner import TEMPLATE, read_owner, write_owner

Pair = tuple[FederationFolder, SiteFolder]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A real federation with one admitted site, each with its kit."""
    root = tmp_path_factory.mktemp("federation")
    federation = FederationFolder.create(root / "wards", "localhost", 18999)
    invitation = Invitation.read(federation.folder / "invitation.toml")
    request = SiteFolder.create(root / "north", "north", invitation)
    site = SiteFolder.open(root / "north")
    site.install_kit(federation.admit(request))
    return federation, site


def private(path: Path) -> bool:
    return not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def test_only_the_owner_can_read_private_keys(pair: Pair) -> None:
    federation, site = pair
    for home, least in ((federation.folder, 3), (site.folder, 2)):
        keys = [path for path in home.rglob("*") if path.suffix == ".key"]
        assert len(keys) >= least
        for key in keys:
            assert private(key), key
            inside = [p for p in key.parents if p == home or home in p.parents]
            assert private(inside[-1])
            assert any(map(private, inside[:2])), key  # its folder, or the kit around it
    assert private(federation.folder / "ca")


def test_a_key_never_travels(pair: Pair) -> None:
    federation, site = pair
    for archive in (site.folder / "north.request.zip", site.folder / "north.signed.zip"):
        with zipfile.ZipFile(archive) as found:
            content = b"".join(found.read(name) for name in found.namelist())
        assert content
        assert b"PRIVATE KEY" not in content
    assert not list(federation.folder.rglob("north*.key"))


def test_a_site_folder_holds_its_federation_and_its_name(pair: Pair) -> None:
    federation, site = pair
    assert site.invitation == federation.invitation
    assert (site.name, federation.name, federation.admitted()) == ("north", "wards", ["north"])
    assert [event["event"] for event in federation.events()][:2] == ["created", "admitted"]
    assert len(federation.invitation.fingerprint.replace(":", "").split()[-1]) >= 64
    site.install_kit()  # it is installed already


def test_a_kit_signed_by_another_authority_is_refused(pair: Pair) -> None:
    _, site = pair
    stranger = Invitation("wards", "localhost", 18999, "SHA256:" + ":".join(["00"] * 32))
    with pytest.raises(DeployError, match="failed"):
        SiteFolder(site.folder, site.name, stranger).install_kit(site.folder / "north.signed.zip")
    assert (site.kit / "startup").is_dir()


def test_a_name_belongs_to_one_key(tmp_path: Path, pair: Pair) -> None:
    federation, site = pair
    request = site.folder / "north.request.zip"
    signed = federation.admit(request)  # again: a renewal, with a new certificate for the same key
    assert signed.is_file()
    assert federation.events()[-1]["request"] == SigningRequest.read(request).fingerprint

    other = SiteFolder.create(tmp_path / "thief", "north", federation.invitation)
    assert SigningRequest.read(other).fingerprint != SigningRequest.read(request).fingerprint
    with pytest.raises(DeployError, match="with another key"):
        federation.admit(other)
    host = SiteFolder.create(tmp_path / "host", "localhost", federation.invitation)
    with pytest.raises(DeployError, match="server's own name"):
        federation.admit(host)


@pytest.mark.parametrize("weak", [True, False])
def test_of_two_requests_at_once_a_name_belongs_to_one_key(
    tmp_path: Path, pair: Pair, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process signs, another one admits the same name for another key."""
    federation, name = pair[0], f"twins-{weak}".lower()
    first, second = (
        SiteFolder.create(tmp_path / which, name, federation.invitation) for which in "ab"
    )
    monkeypatch.setattr("fedsight.deploy.membership.federation.LOCK_TIMEOUT", 0.0)
    if weak:
        monkeypatch.setattr(FederationFolder, "_admitting", lambda self: nullcontext())
    approve = kits.approve

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(kits, "approve", approve)
        if weak:
            federation.admit(second)
        else:
            with pytest.raises(StoreError, match="another process is admitting members"):
                federation.admit(second)
        approve(*arguments)

    monkeypatch.setattr(kits, "approve", meanwhile)
    signed = federation.admit(first)
    assert signed.is_file()
    assert (tmp_path / "b" / signed.name).exists() == weak
    if not weak:
        with pytest.raises(DeployError, match="with another key"):
            federation.admit(second)
    for path in (federation.folder / "admitted").glob(f"{name}.*"):
        path.unlink()  # other tests have this federation, too


def test_who_cannot_be_recorded_gets_no_certificate(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = pair[0]
    request = SiteFolder.create(tmp_path / "lost", "lost", federation.invitation)
    (federation.folder / "admitted" / "lost.crt").mkdir()
    with pytest.raises(StoreError, match=r"lost\.crt"):
        federation.admit(request)
    assert not list(tmp_path.rglob("*.signed.zip"))
    assert not federation.is_admitted("lost")
    (federation.folder / "admitted" / "lost.crt").rmdir()


def test_an_operator_is_admitted_in_the_role_that_both_sides_state(
    tmp_path: Path, pair: Pair
) -> None:
    federation, site = pair
    invitation, anna = federation.invitation, "anna@lyon.example"
    with pytest.raises(DeployError, match="cannot be the name of an operator"):
        OperatorFolder.create(tmp_path / "x", "anna", invitation, False)
    request = OperatorFolder.create(tmp_path / "anna", anna, invitation, True)
    with pytest.raises(DeployError, match="is the request of an operator"):
        federation.admit(request)
    with pytest.raises(DeployError, match="is the request of a site"):
        federation.add_operator(site.folder / "north.request.zip", False)
    with pytest.raises(DeployError, match="asks to only read, and that is not what you want"):
        federation.add_operator(request, False)
    with pytest.raises(DeployError, match="would outlive the authority's"):
        federation.add_operator(request, True, 10_000)
    with pytest.raises(DeployError, match="has not been admitted yet"):
        OperatorFolder.open(tmp_path / "anna").install_kit()
    federation.add_operator(request, True)
    known = federation.operators()
    assert {name: one.read_only for name, one in known.items()} == {OPERATOR: False, anna: True}
    own = OperatorFolder.open(tmp_path / "anna")
    own.install_kit()
    assert own.role == "member"
    assert private(own.kit / "startup" / "client.key")
    assert not list(federation.folder.rglob("anna*.key"))
    with pytest.raises(DeployError, match="may look on, and start, stop and revoke nothing"):
        act_as(federation, own.folder)
    promoted = tmp_path / "promoted.request.zip"
    with zipfile.ZipFile(request) as old, zipfile.ZipFile(promoted, "w") as new:
        for name in old.namelist():  # the same key, in another role: the first one stays valid
            new.writestr(name, old.read(name).replace(b'"member"', b'"lead"'))
    with pytest.raises(DeployError, match="was admitted with other rights"):
        federation.add_operator(promoted, False)
    imitated = OperatorFolder.create(tmp_path / "it", "Anna@lyon.example", invitation, False)
    with pytest.raises(DeployError, match="who could be mistaken for"):
        federation.add_operator(imitated, False)
    other = OperatorFolder.create(tmp_path / "other", anna, invitation, True)
    with pytest.raises(DeployError, match="was admitted with another key"):
        federation.add_operator(other, True)


def test_an_operator_acts_with_a_key_and_a_certificate_of_its_own(
    tmp_path: Path, pair: Pair
) -> None:
    federation, _ = pair
    ben = "ben@lyon.example"
    request = OperatorFolder.create(tmp_path / "ben", ben, federation.invitation, False)
    federation.add_operator(request, False, 10)
    acting = act_as(federation, tmp_path / "ben")
    assert (acting.operator_name, acting.operator_kit) == (ben, tmp_path / "ben" / "kit")
    assert federation.operator_name == OPERATOR
    path = tmp_path / "ben" / "kit" / "startup" / "client.crt"
    renew(federation, [ben])
    assert certificates.days_left(certificates.read(path)) == 9
    moved = replace(federation, invitation=replace(federation.invitation, port=19000))
    act_as(moved, tmp_path / "ben")
    assert certificates.days_left(certificates.read(path)) == 824
    admin = json.loads(path.with_name("fed_admin.json").read_text())["admin"]
    assert (admin["port"], admin["username"]) == (19000, ben)
    federation.revoke(ben, "has left")
    with pytest.raises(DeployError, match=r"'ben@lyon.example' was revoked: has left"):
        act_as(federation, tmp_path / "ben")
    with pytest.raises(DeployError, match=r"operator 'ben@lyon.example' was revoked"):
        federation.add_operator(request, False)
    assert federation.admitted() == ["north"]
    (federation.folder / "revoked.json").unlink()


@pytest.mark.parametrize("side", ["server", "site"])
def test_policies_forbid_code_and_allow_four_classes(pair: Pair, side: Any) -> None:
    federation, site = pair
    kit = federation.folder / "server" / "kit" if side == "server" else site.kit
    (kit / "local").mkdir(exist_ok=True)
    (kit / "local" / "resources.json.default").write_text("{}")
    (kit / "local" / "authorization.json").write_text("{}")
    write_policies(kit, side)
    rights = json.loads((kit / "local" / "authorization.json").read_text())["permissions"]
    assert set(rights) == {"project_admin", "org_admin", "lead", "member"}
    assert {right["byoc"] for right in rights.values()} == {"none"}
    assert {right["shell_commands"] for right in rights.values()} == {"none"}
    assert {right["download_job"] for right in rights.values()} == {"none"}
    may = {role for role, right in rights.items() if right["submit_job"] != "none"}
    assert may == {"lead"}
    resources = json.loads((kit / "local" / "resources.json").read_text())
    assert resources["class_list_enforcement_mode"] == "enforce"
    ours, flares = ("CoordinatorComponent", "controller.CollabController")
    if side == "site":
        ours, flares = ("SiteComponent", "executor.CollabExecutor")
    assert set(resources["class_allow_list"]) == {
        f"fedsight.deploy.flare.components.{ours}",
        f"nvflare.collab.runtime.{flares}",
    }
    assert not list((kit / "local").glob("*.default"))
    places = [value for key, value in leaves(resources) if key in ("root_dir", "uri_root")]
    for place in places:
        assert place == "/" or kit.resolve() in Path(place).parents
    assert sum(place != "/" for place in places) == (2 if side == "server" else 0)


def leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for k, inner in value.items() for leaf in leaves(inner, k)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, key)]
    return [(key, value)]


# -- without FLARE's tools -------------------------------------------------------------------------


def fail(*_: Any, **__: Any) -> None:
    raise DeployError("`nvflare cert init` failed", "")


def test_a_federation_is_created_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kits, "run_flare", fail)
    with pytest.raises(DeployError, match="failed"):
        FederationFolder.create(tmp_path / "wards", "localhost", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(DeployError, match="is not empty"):
            FederationFolder.create(tmp_path / name, "localhost", 1)
        with pytest.raises(DeployError, match="is not empty"):
            SiteFolder.create(tmp_path / name, "a", pair[0].invitation)
    assert len(list(tmp_path.rglob("*"))) == 3


GOOD_NAMES = ["a", "site-01", "Ward_3", "x" * 63, "7"]
BAD_NAMES = [
    "",
    "x" * 64,
    "-a",
    "_a",
    "a b",
    "a/b",
    "..",
    "a.b",
    "ä",
    "a\n",
    "@ALL",
    "a@b",
    "server",
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_valid_name_is_accepted(name: str) -> None:
    check_name(name, "the site")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_invalid_name_is_refused_everywhere(name: str, tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(DeployError, match="cannot be the name of the site"):
        check_name(name, "the site")
    with pytest.raises(DeployError, match="cannot be the name of the site"):
        SiteFolder.create(tmp_path / "new", name, pair[0].invitation)
    with pytest.raises(DeployError, match=r"cannot be the name of the site|not a signing"):
        pair[0].admit(request(tmp_path, {"name": name}))
    assert not (tmp_path / "new").exists()


ROLE = {"kind": "site", "cert_type": "client", "cert_role": None}


def request(folder: Path, facts: Any) -> Path:
    path = folder / "some.request.zip"
    if isinstance(facts, dict):
        facts = {**ROLE, **facts}
        name = str(facts.get("name"))
    else:
        name = "x"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("request.json", facts if isinstance(facts, str) else json.dumps(facts))
        archive.writestr("site.yaml", "")
        archive.writestr(f"{name}.csr", "")
    return path


INVALID_REQUESTS: dict[str, Any] = {
    "invalid JSON": "{",
    "a list": [1],
    "a text": '"text"',
    "null": "null",
    "a number": "7",
    "no name": {},
    "a nest": "[" * 10**5,
}


@pytest.mark.parametrize("facts", INVALID_REQUESTS.values(), ids=INVALID_REQUESTS.keys())
def test_an_invalid_request_is_refused(pair: Pair, tmp_path: Path, facts: Any) -> None:
    with pytest.raises(DeployError, match="is not a signing request"):
        pair[0].admit(request(tmp_path, facts))


def test_files_that_are_not_requests_are_refused(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"not an archive")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("photo.png", "empty.zip", "none.zip", "."):
        with pytest.raises(DeployError, match="is not a signing request"):
            pair[0].admit(tmp_path / name)


@pytest.mark.parametrize("kind", ["admin", "server", "relay", "", None, 7, ["site"]])
@pytest.mark.parametrize("field", ["kind", "cert_type", "cert_role", "participant_type"])
def test_only_sites_are_admitted(pair: Pair, tmp_path: Path, field: str, kind: Any) -> None:
    if (field, kind) == ("cert_role", None):
        return
    with pytest.raises(DeployError, match="is a request for the role"):
        pair[0].admit(request(tmp_path, {"name": "boss", field: kind}))
    assert "boss" not in pair[0].admitted()


@pytest.fixture
def members(tmp_path: Path) -> FederationFolder:
    """A federation's folder with three admitted sites, but without keys."""
    (tmp_path / "admitted").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "admitted" / f"{name}.toml").touch()
    return FederationFolder(tmp_path, Invitation("f", "localhost", 1, "x"))


def test_a_revoked_site_is_not_admitted_again_under_its_name(
    members: FederationFolder, tmp_path: Path
) -> None:
    members.revoke("b", "left the study")
    assert members.admitted() == ["a", "c"]
    assert members.revoked() == {"b": "left the study"}
    with pytest.raises(DeployError, match=r"'b' was revoked: left the study") as caught:
        members.admit(request(tmp_path, {"name": "b"}))
    assert "another name" in caught.value.cure
    members.revoke("c", "")
    assert members.revoked() == {"b": "left the study", "c": "revoked"}
    assert [event["site"] for event in members.events()] == ["b", "c"]


@pytest.mark.parametrize("name", ["d", "", "../a", "A"])
def test_a_site_that_was_never_admitted_cannot_be_revoked(
    members: FederationFolder, name: str
) -> None:
    with pytest.raises(DeployError, match="was never admitted") as caught:
        members.revoke(name, "")
    assert "a, b, c" in caught.value.cure
    assert members.revoked() == {}


INVALID_INVITATIONS = ["", "x = ", 'federation = "f"', "a = 1\nb = 2", "\x00"]


@pytest.mark.parametrize("text", INVALID_INVITATIONS)
def test_an_invalid_invitation_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "invitation.toml").write_text(text)
    with pytest.raises(DeployError, match="is not an invitation"):
        Invitation.read(tmp_path / "invitation.toml")


def test_folders_without_federation_or_site_are_named(tmp_path: Path) -> None:
    for opens, what in ((FederationFolder.open, "a federation"), (SiteFolder.open, "a site")):
        calls: Callable[[Path], Any] = opens
        with pytest.raises(DeployError, match=f"does not contain {what}"):
            calls(tmp_path)


# -- presence and the site's log -------------------------------------------------------------------


def test_a_heartbeat_is_recorded_whatever_the_name(tmp_path: Path) -> None:
    home = tmp_path / "sites"
    for name in ("a", "../b", "c/d", "ä ö"):
        presence.record(home, name, "first", {"train": 3})
    presence.record(home, "a", "first", None)
    found = presence.presences(home)
    assert set(found) == {"a", "../b", "c/d", "ä ö"}
    assert (found["a"].declared, found["a"].alive) == (None, True)
    assert found["c/d"].declared == {"train": 3}
    assert list(tmp_path.iterdir()) == [home]
    assert presence.presence(home, "../b") == found["../b"]
    assert presence.presence(home, "nobody") is None


def test_times_are_the_servers_and_since_is_that_of_the_current_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    set_clock(monkeypatch, lambda: now[0])
    seen = []
    for process in ("first", "first", "second", "second"):
        now[0] += 100.0
        presence.record(tmp_path, "a", process, None)
        one = presence.presence(tmp_path, "a")
        assert one is not None
        seen.append((one.since, one.seen))
    assert seen == [(100.0, 100.0), (100.0, 200.0), (300.0, 300.0), (300.0, 400.0)]


JSON = st.sampled_from(
    ["null", "7", "[]", '{"process": 1}', '{"process": [], "declared": 3}', "[" * 100_000]
)


@given(st.one_of(st.none(), st.text(), st.binary(), JSON))
def test_any_heartbeat_is_decoded_or_blank(text: object) -> None:
    found = presence.Heartbeat.decode(text)
    assert isinstance(found.token, str)
    assert isinstance(found.process, str)
    assert found.declared is None or isinstance(found.declared, dict)


def test_a_heartbeat_is_decoded_again_unless_it_is_too_long() -> None:
    sent = presence.Heartbeat("t", "p", {"train": 3})
    assert presence.Heartbeat.decode(sent.encode()) == sent
    long = presence.Heartbeat("t", "p", {"x": "y" * presence.MAX_HEARTBEAT_CHARACTERS})
    assert presence.Heartbeat.decode(long.encode()) == presence.Heartbeat()


def test_a_silent_site_is_not_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presence.record(tmp_path, "a", "first", None)
    heard_ago(tmp_path / "a.json", presence.HEARTBEAT_TIMEOUT + 1)
    assert not presence.presences(tmp_path)["a"].alive


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_makes_no_site_silent_or_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    for name in ("there", "gone"):
        presence.record(tmp_path, name, "first", None)
    heard_ago(tmp_path / "gone.json", presence.HEARTBEAT_TIMEOUT + 1)
    presence.record_answer(tmp_path)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    found = presence.presences(tmp_path)
    assert (found["there"].alive, found["gone"].alive) == (True, False)
    assert presence.is_answered(tmp_path)
    presence.record(tmp_path, "there", "first", None)
    again = presence.presences(tmp_path)["there"]
    assert (again.since, again.restarts) == (found["there"].since, found["there"].restarts)


def test_a_site_that_restarts_often_has_to_stay_before_a_job_begins_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1e9]
    set_clock(monkeypatch, lambda: now[0])

    def settled(process: int) -> bool:
        presence.record(tmp_path, "a", str(process), None)
        one = presence.presence(tmp_path, "a")
        assert one is not None
        return one.settled

    free = presence.FREE_RESTARTS
    assert all(settled(process) for process in range(1 + free))
    for process, wait in ((1 + free, 60), (2 + free, 120), (3 + free, 240)):
        for _ in range(wait // 5):
            assert not settled(process)
            now[0] += 4.9  # it goes on saying so: a silence would count, too
        assert not settled(process)
        now[0] += 0.02 * wait + 0.1
        assert settled(process)
    for process in range(100):
        settled(process)
    now[0] += presence.RESTART_WINDOW
    assert settled(99), "the longest wait"
    assert settled(100), "and then nothing counts any more"


def test_files_that_are_not_a_presence_are_skipped(tmp_path: Path) -> None:
    presence.record(tmp_path, "a", "first", None)
    for number, text in enumerate(("", "{", "[]", "7", "{}", '{"name": "x"}')):
        (tmp_path / f"junk{number}.json").write_text(text)
    (tmp_path / "b.partial").write_text("{")
    assert set(presence.presences(tmp_path)) == {"a"}
    assert presence.presences(tmp_path / "none") == {}


def test_an_incomplete_last_line_of_the_sites_log_is_skipped(tmp_path: Path) -> None:
    log = SiteLog(tmp_path)
    assert log.read() == []
    log.write("joined", run="r", images=3)
    log.write("update", bytes=8)
    with log.path.open("ab") as file:
        file.write(b'{"time": "20')
    assert [line["event"] for line in log.read()] == ["joined", "update"]
    assert log.read()[0]["images"] == 3


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    log = SiteLog(tmp_path)
    log.path.mkdir()
    with pytest.raises(StoreError, match="the site's log cannot be written"):
        log.write("update")


def test_all_of_an_owners_settings_are_written_for_jobs(tmp_path: Path) -> None:
    table = {
        "data": {"name": "fashion-mnist-12k"},
        "contract": {"sites": 5, "epsilon": 2.0, "require": ["local_dp"]},
        "secure": {"cohort": 20, "threshold": 10, "neighbours": 9, "survivors": 15},
        "delivery": {"choose": False, "alone": True},
        "keep": {
            "job_days": 30.0,
            "jobs": 20,
            "log_size": 1.5,
            "logs": 9,
            "audit_size": 8.0,
            "memory_rounds": 5,
        },
        "speed": {"threads": 3},
        "monitoring": {"port": 9465, "log": "json"},
        "hooks": {"command": ["/bin/true", "-x"], "events": ["run_ended"], "lost_after": 5.0},
    }
    (tmp_path / "site.toml").write_text(tomli_w.dumps(table))
    owner = read_owner(tmp_path / "site.toml", None)
    write_owner(owner, tmp_path / "owner.toml")
    assert read_owner(tmp_path / "owner.toml", None) == owner
    sections = set(re.findall(r"^\[(\w+)\]", TEMPLATE, re.MULTILINE))
    assert sections == set(table), "a section is not covered here"
