"""`fedsight site doctor` and `federation doctor`: what they find wrong before the first run."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from authorities import authority, certify, give, give_kit, show
from command_line import cli

from fedsight.cli import doctor_deployed
from fedsight.core.package import RUNNING, installed
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.membership.kits import AUTHORITY, AUTHORITY_KEY
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server.server import free_port
from fedsight.deploy.site.approvals import decide
from fedsight.deploy.site.owner import read_owner, write_owner
from fedsight.governance import entries
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import CLOCK_TOLERANCE, Ledger
from fedsight.program.config import parse

INVITATION = Invitation("wards", "localhost", free_port(), "SHA256:00")  # nobody listens there


def doctor(*words: object) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and what was found, by what was looked at."""
    ended = cli(*words, "--json")
    found = {one["what"]: one for one in json.loads(ended.out)["findings"]}
    return ended.code, found


@pytest.fixture
def site(tmp_path: Path, site_images: Path) -> Path:
    """A site that was never started."""
    home = tmp_path / "lyon"
    home.mkdir()
    facts = {"name": "lyon", "federation": asdict(INVITATION)}
    (home / "identity.toml").write_text(tomli_w.dumps(facts))
    write(home, {"data": {"name": "folder", "path": str(site_images / "north")}})
    return home


def write(home: Path, table: Mapping[str, Any]) -> None:
    (home / "site.toml").write_text(tomli_w.dumps(dict(table)))


def test_a_site_that_was_not_admitted(site: Path) -> None:
    code, found = doctor("site", "doctor", site)
    assert code == 1
    assert found["FedSight"]["value"].endswith(installed().sha256)
    assert found["admission"]["state"] == "bad"
    assert "lyon.request.zip" in found["admission"]["cure"]
    assert found["images"]["value"].startswith("14 for training, 5 for testing; classes: ant, bee")
    assert found["site"]["state"] == "note"
    text = cli("site", "doctor", site).out
    assert len([line for line in text.splitlines() if line[:1].strip()]) == len(found) + 1


def test_a_server_that_does_not_answer_and_a_certificate_near_its_end(site: Path) -> None:
    certificate = show(site)
    (certificate.parent / "client.crt").write_bytes(certify("lyon", "client", 0.9))
    code, found = doctor("site", "doctor", site)
    assert code == 1
    assert found["network"]["state"] == "bad"
    assert f"localhost:{INVITATION.port} does not answer" in found["network"]["value"]
    assert (found["certificate"]["state"], found["certificate"]["value"]) == (
        "note",
        "valid for 0 more days",
    )
    assert found["certificate"]["cure"] == "ask the operator for: fedsight federation renew lyon"


@contextmanager
def tls_server(folder: Path, version: ssl.TLSVersion, tickets: int) -> Iterator[int]:
    """A server for 'localhost' that wants certificates of its own authority; yields its port."""
    give(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version, context.num_tickets = version, tickets
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca" / AUTHORITY)
    context.load_cert_chain(folder / "ca" / AUTHORITY, folder / "ca" / AUTHORITY_KEY)
    with socket.create_server(("localhost", 0)) as listening:
        listening.settimeout(60)

        def serve() -> None:
            with suppress(OSError):
                plain, _ = listening.accept()
                with plain, context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(1)  # until the doctor goes

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(("of", "tickets"), [("localhost", 2), ("localhost", 0), ("wards", 2)])
def test_whether_the_server_accepts_the_sites_certificate(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
    of: str,
    tickets: int,
) -> None:
    if not tickets:  # a server that says nothing has not refused
        monkeypatch.setattr(doctor_deployed, "VERDICT_TIMEOUT", 0.2)
    startup = show(site, "localhost").parent
    own, key = authority(of)
    (startup / "client.crt").write_bytes(own)
    (startup / "client.key").write_bytes(key)
    (startup / "client.key").chmod(0o600)
    with tls_server(tmp_path, version, tickets) as port:
        federation = asdict(replace(INVITATION, port=port))
        identity = {"name": "lyon", "federation": federation}
        (site / "identity.toml").write_text(tomli_w.dumps(identity))
        _, found = doctor("site", "doctor", site)
    assert found["network"]["state"] == "ok"
    assert found["TLS"]["state"] == ("ok" if of == "localhost" else "bad"), found["TLS"]


@pytest.mark.parametrize(
    ("table", "what", "why"),
    [
        ({"contract": {"epsilom": 1}}, "settings", "contract.epsilom"),
        ({"contract": {"packages": ["e" * 64]}}, "images", "contract.packages"),
        ({"data": {"name": "folder", "path": "/nowhere"}}, "images", "nowhere"),
    ],
)
def test_settings_that_do_not_fit(
    site: Path, site_images: Path, table: dict[str, Any], what: str, why: str
) -> None:
    write(site, {"data": {"name": "folder", "path": str(site_images / "north")}, **table})
    _, found = doctor("site", "doctor", site)
    assert found[what]["state"] == "bad"
    assert why in found[what]["value"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, ""), ({"classes": ["dog", "ant"]}, "data.classes"), ({"task": "x"}, "contract.tasks")],
)
def test_a_program_is_held_against_contract_and_images(
    site: Path, site_images: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    tasks = ["segment"] if "task" in changes else ["classify"]
    data = {"name": "folder", "path": str(site_images / "north")}
    write(site, {"data": data, "contract": {"tasks": tasks}})
    classes = changes.get("classes", ["ant", "bee", "cat"])
    shown = {"name": "folder", "path": "images", "size": 8, "channels": 1, "classes": classes}
    config = tmp_path / "my.toml"
    config.write_text(tomli_w.dumps({"data": shown}))
    _, found = doctor("site", "doctor", site, "--program", config)
    assert found["program"]["state"] == ("bad" if why else "ok")
    assert why in found["program"]["value"]


def test_a_program_that_the_owner_has_to_approve(
    site: Path, site_images: Path, tmp_path: Path
) -> None:
    data = {"name": "folder", "path": str(site_images / "north")}
    write(site, {"data": data, "contract": {"approval": True}})
    shown = {"name": "folder", "path": "images", "size": 8, "channels": 1}
    shown["classes"] = ["ant", "bee", "cat"]
    config = tmp_path / "my.toml"
    config.write_text(tomli_w.dumps({"data": shown}))
    of = parse({"data": shown}, base=tmp_path)[0].fingerprint
    _, found = doctor("site", "doctor", site, "--program", config)
    assert (found["program"]["state"], found["approval"]["state"]) == ("ok", "note")
    assert not (site / "programs").exists(), "the doctor asks for nothing"
    decide(site, of, approve=True)
    _, found = doctor("site", "doctor", site, "--program", config)
    assert found["approval"]["state"] == "ok"
    decide(site, of, approve=False)
    _, found = doctor("site", "doctor", site, "--program", config)
    assert "has refused this program" in found["program"]["value"]


MASKED = {"require": ["secure_aggregation"]}
SHADE = {"data": {"name": "folder", "path": "images", "size": 8, "channels": 1}}


@pytest.mark.parametrize(
    ("contract", "sections", "why"),
    [
        ({}, {"model": {"name": "mlp", "weights": "/none", "sha256": "a" * 64}}, ""),
        (
            MASKED,
            {"secure": {"name": "secagg"}, "algorithm": {"name": "scaffold"}},
            "masked_memory",
        ),
        ({}, {"timing": {"delay_seconds": 1.0}}, "the program is for a simulation"),
        ({"sites": 3}, {"rounds": {"mode": "buffered", "buffer": 2}}, "contract.sites"),
        ({"disk": 1e-9}, {}, "contract.disk"),
    ],
)
def test_the_doctor_says_what_the_site_would(
    site: Path,
    site_images: Path,
    tmp_path: Path,
    contract: dict[str, Any],
    sections: dict[str, Any],
    why: str,
) -> None:
    data = {"name": "folder", "path": str(site_images / "north")}
    write(site, {"data": data, "contract": contract})
    (site / "memory" / ("a" * 64) / "run").mkdir(parents=True)
    (site / "memory" / ("a" * 64) / "run" / "held").write_bytes(b"12")
    (tmp_path / "my.toml").write_text(tomli_w.dumps({**SHADE, **sections}))
    _, found = doctor("site", "doctor", site, "--program", tmp_path / "my.toml")
    assert found["program"]["state"] == ("bad" if why else "ok"), found["program"]
    assert why in found["program"]["value"]


def test_what_the_answer_presumes_is_said(site: Path, site_images: Path, tmp_path: Path) -> None:
    data = {"name": "folder", "path": str(site_images / "north")}
    write(site, {"data": data, "contract": {"sites": 4, "operators": ["eva@wards"]}})
    (tmp_path / "my.toml").write_text(tomli_w.dumps(SHADE))
    _, found = doctor("site", "doctor", site, "--program", tmp_path / "my.toml")
    assert found["program"]["value"] == "permitted, with 4 sites or more"
    assert found["operators"]["state"] == "note"
    assert "eva@wards" in found["operators"]["value"]


def test_a_running_site_is_judged_by_what_it_was_started_with(
    site: Path, site_images: Path, tmp_path: Path
) -> None:
    data = {"name": "folder", "path": str(site_images / "north")}
    (tmp_path / "my.toml").write_text(tomli_w.dumps(SHADE))
    words = ("site", "doctor", site, "--program", tmp_path / "my.toml")
    write(site, {"data": data, "contract": {"tasks": ["segment"]}})
    write_owner(read_owner(site / "site.toml", None), site / "owner.toml")
    with supervisor.exclusive(site, "the site"):
        assert doctor(*words)[1]["settings"]["state"] == "ok"
        write(site, {"data": data})
        _, found = doctor(*words)
        assert found["settings"]["state"] == "note"
        assert "contract.tasks" in found["program"]["value"]
    _, found = doctor(*words)
    assert (found["settings"]["state"], found["program"]["state"]) == ("ok", "ok")
    write(site, {"data": data, "contract": {"epsilom": 1}})  # the next start would fail
    assert doctor(*words)[1]["settings"]["state"] == "bad"


@pytest.mark.parametrize("behind", [timedelta(minutes=3), timedelta(minutes=8)])
def test_a_clock_may_be_as_far_behind_as_the_ledger_bears(
    site: Path, monkeypatch: pytest.MonkeyPatch, behind: timedelta
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(entries, "now", lambda: datetime.now(UTC) + behind)
        Ledger(site).append(LedgerEntry("refused", run="r", program="p", why="w"))
    _, found = doctor("site", "doctor", site)
    assert ("clock" in found) == (behind > CLOCK_TOLERANCE)


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    folder = tmp_path / "wards"
    for part in ("admitted", "runs", "server/sites", "server/kit", "operator"):
        (folder / part).mkdir(parents=True)
    (folder / "invitation.toml").write_text(tomli_w.dumps(asdict(INVITATION)))
    for name in ("a", "b", "c", "d"):
        (folder / "admitted" / f"{name}.toml").touch()
    give(folder)
    (folder / "ca" / "rootCA.key").chmod(0o600)
    return FederationFolder.open(folder)


def test_a_federation_and_its_sites(federation: FederationFolder) -> None:
    ours = str(installed())
    declared = {"classes": ["cat", "dog"]}
    presence.record(federation.presences, "a", "p", declared, ours)
    presence.record(federation.presences, "b", "p", {"classes": ["dog", "cat"]}, "0.0.9 (abc)")
    presence.record(federation.presences, "c", "p", None, ours, "stopped")
    words = ("federation", "doctor", "--federation", federation.folder)
    code, found = doctor(*words)
    assert code == 1
    states = {what: one["state"] for what, one in found.items()}
    assert states["server"] == "bad"
    assert [states[f"site {name}"] for name in "abcd"] == ["ok", "bad", "bad", "note"]
    assert found["site b"]["value"] == "runs FedSight 0.0.9 (abc)"
    assert "'a' and 'b' have different ones" in found["class names"]["value"]
    assert states["keys"] == "ok"
    (federation.folder / "ca" / "rootCA.key").chmod(0o644)
    assert doctor(*words)[1]["keys"]["state"] == "bad"


def test_certificates_that_end_soon_are_named_with_the_cure(federation: FederationFolder) -> None:
    folder = federation.folder
    (folder / "operators").mkdir()
    record = 'admitted = "2026"\nrequest = "x"\nread_only = false\n'
    for name, left in (("anna@lyon.example", 20), ("ben@lyon.example", 200)):
        (folder / "operators" / f"{name}.toml").write_text(record)
        (folder / "operators" / f"{name}.crt").write_bytes(certify(name, "lead", left))
    for name, left in zip("abcd", (-0.5, 29.5, 30.5, 299.5), strict=True):
        (folder / "admitted" / f"{name}.crt").write_bytes(certify(name, "client", left, begins=-5))
    startup = give_kit(folder / "server", "localhost", "server", 300)
    (startup / "client.crt").rename(startup / "server.crt")
    _, found = doctor("federation", "doctor", "--federation", folder)
    said = {what: one["value"] for what, one in found.items() if "renew" in one["cure"]}
    assert said.keys() == {"operator anna@lyon.example", "certificate of a", "certificate of b"}
    assert said["certificate of a"].startswith("expired on ")
    assert found["certificate of a"]["state"] == "bad"
    assert found["certificate of b"]["cure"] == "fedsight federation renew"
    assert found["authority's certificate"]["state"] == "ok"
    words = ("federation", "status", "--federation", folder)
    text = " ".join(cli(*words).out.split())
    assert "The certificate of the site 'a' ended on" in text
    assert "'b' ends in 29 days" in text
    assert "'anna@lyon.example' ends in 19 days" in text
    assert "'c'" not in text
    table = json.loads(cli(*words, "--json").out)["certificates"]
    assert {one["name"]: one["days"] for one in table if one["kind"] == "site"} == {
        **{"a": -1, "b": 29},
        **{"c": 30, "d": 299},
    }


def test_a_server_that_runs_older_code_is_named(federation: FederationFolder) -> None:
    home = federation.server_home
    (home / RUNNING).write_text(json.dumps({"version": "0.0.9", "sha256": "a" * 64}))
    words = ("federation", "doctor", "--federation", federation.folder)
    with supervisor.exclusive(home, "the server"):
        _, found = doctor(*words)
        assert found["server"]["state"] == "bad"
        assert found["server"]["value"] == "was started with FedSight 0.0.9 (aaaaaaaaaaaa)"
        (home / RUNNING).write_text(json.dumps(installed().table()))
        assert doctor(*words)[1]["server"]["state"] == "ok"
