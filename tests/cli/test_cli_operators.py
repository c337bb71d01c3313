"""`fedsight operator`, `federation operator` and renewals: what they say, what they refuse."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import authorities
import pytest
import tomli_w
from command_line import done, refused

from fedsight.coordinator.asked import asked
from fedsight.coordinator.folders import LOCK
from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.deploy.membership import certificates
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder, Invitation
from fedsight.deploy.membership.operator_folder import IDENTITY
from fedsight.deploy.server import looking, server

INVITATION = Invitation("wards", "localhost", 8002, "SHA256:AB:CD")
ANNA, BEN = "anna@lyon.example", "ben@lyon.example"


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    """A federation with a site and three operators; its certificates end in 10 days."""
    folder = tmp_path / "wards"
    for part in ("admitted", "operators", "runs", "server/sites"):
        (folder / part).mkdir(parents=True)
    (folder / "invitation.toml").write_text(tomli_w.dumps(asdict(INVITATION)))
    authorities.give(folder)
    startup = authorities.give_kit(folder / "server", "localhost", "server", 10)
    (startup / "client.crt").rename(startup / "server.crt")
    authorities.give_kit(folder / "operator", OPERATOR, "lead", 10)
    for name, role in ((OPERATOR, "lead"), (ANNA, "lead"), (BEN, "member")):
        facts = {"admitted": "2026-11-30", "request": "x", "read_only": role == "member"}
        (folder / "operators" / f"{name}.toml").write_text(tomli_w.dumps(facts))
        (folder / "operators" / f"{name}.crt").write_bytes(authorities.certify(name, role, 10))
    (folder / "admitted" / "lyon.toml").touch()
    (folder / "admitted" / "lyon.crt").write_bytes(authorities.certify("lyon", "client", 10))
    own = folder / "operators" / f"{OPERATOR}.crt"
    own.write_bytes((folder / "operator" / "kit" / "startup" / "client.crt").read_bytes())
    return FederationFolder.open(folder)


def own_folder(place: Path, name: str, role: str, invitation: Invitation = INVITATION) -> Path:
    """The folder of an operator who was admitted."""
    home = place / name
    authorities.give_kit(home, name, role, 10)
    facts = {"name": name, "federation": asdict(invitation)}
    (home / IDENTITY).write_text(tomli_w.dumps(facts))
    return home


def words(federation: FederationFolder, *of: object) -> list[object]:
    return ["federation", *of, "--federation", federation.folder]


def test_the_operators_are_listed_and_revoked(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = done(*words(federation, "operator", "list")).out
    lines = {line.split()[0]: line for line in text.splitlines() if "@" in line}
    assert "looks on" in lines[BEN]
    assert "starts and stops runs" in lines[ANNA]
    ended: list[str] = []
    monkeypatch.setattr(server, "end_jobs", lambda folder, name: ended.append(name) or 2)
    said = done(*words(federation, "operator", "revoke", ANNA, "--why", "has left")).out
    assert f"Revoked the operator '{ANNA}': the server refuses them; jobs of theirs" in said
    assert "The signed list of revocations has the number 1" in said
    assert ended == [ANNA]
    table = json.loads(done(*words(federation, "operator", "list", "--json")).out)
    found = {one["name"]: one for one in table}
    assert found[ANNA]["revoked"] == "has left"
    assert found[ANNA]["until"] is None, "nobody renews it"
    assert found[BEN]["until"].startswith("20")
    assert federation.revocations.names == (ANNA,)
    assert "Federation 'wards'" in done(*words(federation, "status")).out
    rows = json.loads(done(*words(federation, "status", "--json")).out)["rows"]
    assert [row["name"] for row in rows] == ["lyon"], "an operator is not a site"


def test_who_is_not_an_operator_is_not_revoked_as_one(federation: FederationFolder) -> None:
    text = refused(8, *words(federation, "operator", "revoke", "lyon"))
    assert "'lyon' is not an operator of this federation" in text
    assert ANNA in text
    text = refused(8, *words(federation, "revoke", ANNA))
    assert "use: fedsight federation operator revoke" in text
    assert federation.revoked() == {}


def test_one_who_revokes_the_operator_of_the_commands_is_told(
    federation: FederationFolder,
) -> None:
    said = done(*words(federation, "operator", "revoke", OPERATOR)).out
    assert "give another operator's folder with --operator from now on" in said


@pytest.mark.parametrize(
    ("name", "role", "other", "why"),
    [
        (BEN, "member", {}, "may look on, and start, stop and revoke nothing"),
        ("eve@evil.example", "lead", {}, "is not an operator of this federation"),
        (ANNA, "lead", {"fingerprint": "SHA256:00"}, "operator of another federation"),
        (ANNA, "member", {}, "may look on, and start, stop and revoke nothing"),
    ],
)
def test_a_run_is_refused_to_who_may_not_start_it(
    federation: FederationFolder, tmp_path: Path, name: str, role: str, other: dict, why: str
) -> None:
    invitation = Invitation(**{**asdict(INVITATION), **other})
    home = own_folder(tmp_path, name, role, invitation)
    config = tmp_path / "p.toml"
    config.write_text('[data]\nname = "fashion-mnist-12k"\n')
    given = ("run", config, "--federation", federation.folder, "--operator", home)
    assert why in refused(8, *given)
    assert why in refused(8, *words(federation, "revoke", "lyon"), "--operator", home)
    assert not any(federation.runs.iterdir())
    assert federation.revoked() == {}
    assert "is not an operator's folder" in refused(8, *given[:-1], tmp_path)


def test_all_certificates_are_renewed_by_one_command(
    federation: FederationFolder, tmp_path: Path
) -> None:
    assert "'lyon' ends in 9 days" in " ".join(done(*words(federation, "status")).out.split())
    said = done(*words(federation, "renew", "--days", "400")).out
    assert f"Renewed for 400 days: localhost, {ANNA}, {BEN}, {OPERATOR}, lyon" in said
    assert "fedsight site renew DIR FILE" in said
    assert "ends in" not in done(*words(federation, "status")).out
    assert "'oslo' has no certificate" in refused(8, *words(federation, "renew", "oslo"))
    text = refused(8, *words(federation, "renew", "--days", "2000"))
    assert "would outlive the authority's" in text

    home = tmp_path / "lyon"
    facts = {"name": "lyon", "federation": asdict(INVITATION)}
    home.mkdir()
    (home / "identity.toml").write_text(tomli_w.dumps(facts))
    path = federation.folder / "admitted" / "lyon.crt"
    assert "has not been admitted yet" in refused(8, "site", "renew", home, path)
    startup = authorities.give_kit(home, "lyon", "client", 10)
    assert "cannot be read" in refused(8, "site", "renew", home, tmp_path / "none")
    other = federation.folder / "operators" / f"{ANNA}.crt"
    assert "it is for another key" in refused(8, "site", "renew", home, other)
    assert "is valid until" in done("site", "renew", home, path).out
    assert certificates.days_left(certificates.read(startup / "client.crt")) == 399
    assert "has this certificate already" in done("site", "renew", home, path).out
    own = own_folder(tmp_path, ANNA, "lead")
    assert f"'{ANNA}' is valid until" in done("operator", "renew", own, other).out
    assert "it is for another key" in refused(8, "operator", "renew", own, path)


def test_an_operator_looks_on_and_an_answer_that_is_none_is_one_message(
    federation: FederationFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.deploy.server.views import view

    monkeypatch.setattr(looking, "look", lambda own, *what: json.loads(view(federation, *what)))
    home = own_folder(tmp_path, BEN, "member")
    text = done("operator", "status", home).out
    assert "Federation 'wards' at localhost:8002; the server is running" in text
    assert "lyon" in text
    assert json.loads(done("operator", "status", home, "--json").out)["federation"] == "wards"
    assert "There are no runs yet" in done("operator", "history", home).out
    run = federation.runs / "first"
    run.mkdir()
    (run / "run.json").write_text('{"created": "2026-11-30", "rounds": 2}')
    (run / "history.jsonl").write_text('{"round": 1, "loss": 0.5}\n')
    assert "first" in done("operator", "history", home).out
    assert "0.500" in done("operator", "history", home, "--run", "first").out
    assert "has no run 'other'" in refused(7, "operator", "history", home, "--run", "other")
    assert "has no report yet" in refused(7, "operator", "report", home, "first")
    (run / "report.html").write_text("<html>ü</html>")
    page = tmp_path / "page.html"
    done("operator", "report", home, "first", "--out", page)
    assert page.read_text() == "<html>ü</html>"
    for broken in ({}, {"rows": 3}, {"federation": 1, "address": 2, "serving": 3, "rows": [{}]}):
        monkeypatch.setattr(looking, "look", lambda own, *what, found=broken: found)
        assert "cannot be understood" in refused(8, "operator", "status", home)


def test_an_operator_steers_a_run_from_another_machine(
    federation: FederationFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.deploy.server.views import ask

    monkeypatch.setattr(looking, "ask", lambda own, *words: ask(federation, own.name, *words))
    home = own_folder(tmp_path, OPERATOR, "lead")
    run = federation.runs / "first"
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert "is not running" in refused(7, "operator", "stop", home, "first")
    assert "has no run 'other'" in refused(7, "operator", "pause", home, "other")
    with locks.hold(run / LOCK, 1.0, ValueError()):
        assert "will pause" in done("operator", "pause", home, "first").out
        assert asked(run) == "pause"
        assert "told to stop" in done("operator", "stop", home, "first").out
        assert asked(run) == "stop"
    told = [(one["what"], one["run"], one["operator"]) for one in federation.events()]
    assert told == [("pause", "first", OPERATOR), ("stop", "first", OPERATOR)]


@pytest.mark.parametrize(
    "words", [(), ("stop",), ("resume", "first"), ("stop", "../ca"), ("stop", "first", "x")]
)
def test_nothing_else_can_be_asked(federation: FederationFolder, words: tuple[str, ...]) -> None:
    from fedsight.core.errors import StoreError
    from fedsight.deploy.server.views import ask

    (federation.runs / "first").mkdir(exist_ok=True)
    (federation.runs / "first" / "run.json").write_text("{}")
    with pytest.raises((DeployError, StoreError)):
        ask(federation, OPERATOR, *words)


@pytest.mark.parametrize("what", ["", "nothing", "status x", "rounds", "report ../../ca"])
def test_no_view_leads_out_of_the_federation(federation: FederationFolder, what: str) -> None:
    from fedsight.core.errors import StoreError
    from fedsight.deploy.server.views import view

    with pytest.raises((DeployError, StoreError)):
        view(federation, *(what.split() or [""]))
