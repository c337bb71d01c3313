"""`fedsight federation`, `server` and `site`: what they refuse, what they show, a round trip."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import authorities
import pytest
import tomli_w
from clocks import heard_ago
from command_line import check_message, cli, done, refused, write_config

from fedsight.cli import members
from fedsight.core import disk
from fedsight.core.errors import DeployError
from fedsight.core.package import installed
from fedsight.deploy import requirements
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.membership.kits import AUTHORITY_KEY
from fedsight.deploy.processes import supervisor
from fedsight.deploy.processes.spawn import Process
from fedsight.deploy.server import server
from fedsight.deploy.site.log import SiteLog
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

PRINT = "SHA256:AB:CD"
DECLARED = {
    **{"source": "folder", "share": False, "train": 1200, "test": 300, "skipped": 2},
    "classes": ["cat", "dog"],
}


def federation(folder: Path, *sites: str, port: int = 8002) -> FederationFolder:
    """A federation's folder as `init` and `admit` leave it, without any key."""
    for part in ("admitted", "runs", "server/sites", "server/kit"):
        (folder / part).mkdir(parents=True)
    invitation = {"federation": folder.name, "host": "localhost", "port": port}
    (folder / "invitation.toml").write_text(tomli_w.dumps({**invitation, "fingerprint": PRINT}))
    made = FederationFolder.open(folder)
    made.log_event("created", host="localhost", port=port)
    for site in sites:
        (folder / "admitted" / f"{site}.toml").write_text("days = 825\n")
        made.log_event("admitted", site=site, days=825)
    return made


def rows(text: str) -> dict[str, str]:
    """The lines of a table by their first word."""
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def write_run(federation: FederationFolder, name: str, created: str, **files: Any) -> Path:
    """A run's folder with two rounds."""
    folder = federation.runs / name
    folder.mkdir()
    facts = {"created": created, "rounds": 5, "population": 3, "federation": "elsewhere"}
    lines = [
        {"round": 1, "score": 0.5, "loss": 1.0, "cohort": 3, "replies": 3, "rejected": {}},
        {"round": 2, "score": None, "loss": None, "cohort": 3, "replies": 2, "seconds": 2.25}
        | {"rejected": {"b": "site 'b' sent [NaN]"}},
    ]
    for file, value in {"run.json": facts, **files}.items():
        (folder / file).write_text(json.dumps(value))
    (folder / "run.toml").write_text('[data]\nname = "fashion-mnist-12k"\n')
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


# Which federation


def test_without_a_federation_here_the_command_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["status"], ["history"], ["revoke", "a"], ["admit", "a.request.zip"]):
        assert "there is no federation in" in refused(8, "federation", *words)
    assert "there is no federation in" in refused(8, "server", "start")
    assert "none does not contain a federation" in refused(
        8, "federation", "status", "--federation", "none"
    )
    (tmp_path / "invitation.toml").write_text("a site's owner may have one")
    assert "there is no federation in" in refused(8, "federation", "status")


def test_the_only_federation_here_is_meant(tmp_path: Path, monkeypatch) -> None:
    federation(tmp_path / "wards", "a")
    monkeypatch.chdir(tmp_path)
    assert "Federation 'wards'" in done("federation", "status").out
    monkeypatch.chdir(tmp_path / "wards")
    assert "Federation 'wards'" in done("federation", "status").out


def test_of_several_federations_one_must_be_named(tmp_path: Path, monkeypatch) -> None:
    federation(tmp_path / "one")
    federation(tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    text = refused(8, "federation", "status")
    assert "there are 2 federations in" in text
    assert "--federation one" in text
    assert "Federation 'two'" in done("federation", "status", "--federation", "two").out


# Tables


def test_status_shows_who_is_connected_and_with_what(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a", "b", "c", "d")
    presence.record(made.presences, "a", "process", DECLARED)
    presence.record(made.presences, "b", "process", {"classes": 7, "train": "[x]", "source": None})
    presence.record(made.presences, "d", "process", None)
    heard_ago(made.presences / "b.json", 86400 * 9)
    made.revoke("d", "stolen [red] :x:")
    text = done("federation", "status", "--federation", made.folder).out
    assert "the server is not running" in text
    found = rows(text)
    assert "connected since" in found["a"]
    assert found["a"].split()[-5:] == ["folder", "1,200", "300", "2", "2"]
    assert "last seen 20" in found["b"]
    assert "[x]" not in found["b"]
    assert found["c"].split() == ["c", "never"]
    assert "stolen [red] :x:" in found["d"]
    assert found["d"].split()[1] == "refused"


def test_status_shows_who_runs_other_code(tmp_path: Path) -> None:
    made, ours = federation(tmp_path / "wards", "a", "b"), installed()
    presence.record(made.presences, "a", "process", DECLARED, str(ours))
    presence.record(made.presences, "b", "process", DECLARED, f"{ours.version} (0123456789ab)")
    words = ("federation", "status", "--federation", made.folder)
    text = done(*words).out
    assert f"Not the FedSight of this machine ({ours})" in text
    assert text.rstrip().endswith(": b")
    table = json.loads(done(*words, "--json").out)
    assert (table["federation"], table["serving"], table["package"]) == ("wards", False, str(ours))
    found = {row["name"]: row for row in table["rows"]}
    assert (found["a"]["connected"], found["a"]["train"], found["a"]["other"]) == (
        True,
        1200,
        False,
    )
    assert (found["b"]["package"], found["b"]["other"]) == (f"{ours.version} (0123456789ab)", True)


def test_status_calls_nobody_silent_while_the_server_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(tmp_path / "wards", "a", "b")
    for name in ("a", "b"):
        presence.record(made.presences, name, "process", DECLARED)
    heard_ago(made.presences / "b.json", 60)
    monkeypatch.setattr(disk, "FULL", 1 << 62)
    text = done("federation", "status", "--federation", made.folder).out
    assert "The disk of this folder is full" in text
    assert "connected since" in rows(text)["a"]
    assert "unknown since" in rows(text)["b"]
    assert "last seen" not in text


def test_status_of_a_new_federation(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards")
    assert (
        "No site has been admitted yet"
        in done("federation", "status", "--federation", made.folder).out
    )


def test_status_tells_whether_the_server_runs(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a")
    home = made.folder / "server"
    words = ("federation", "status", "--federation", made.folder)
    (home / "process.pid").write_text("1")
    assert "the server is not running" in done(*words).out, "a number left over from before"
    with supervisor.exclusive(home, "the server"):
        assert "the server is starting" in done(*words).out
        (home / "process.pid").write_text("1")
        assert "the server is running (process 1)" in done(*words).out
        (home / "process.pid").write_text(str(2**22 + 1))  # beyond the largest there is
        assert "is being restarted" in done(*words).out
    (home / "process.pid").unlink()
    assert supervisor.process_id(home) is None


def test_history_shows_events_and_runs(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a")
    words = ("federation", "history", "--federation", made.folder)
    assert "There are no runs yet" in done(*words).out
    made.revoke("a", "[gone]")
    write_run(made, "zero", "2026-01-02T00:00:00+00:00")
    write_run(made, "later", "2026-03-02T00:00:00+00:00", **{"summary.json": {"score": 0.75}})
    outcome = {"state": "failed", "cause": "no site is left", "cure": "look"}
    write_run(made, "broken", "2026-02-02T00:00:00+00:00", **{"job.json": outcome})
    text = done(*words).out
    assert text.index("created") < text.index("admitted") < text.index("revoked")
    assert "site: a, why: [gone]" in text
    assert text.index("zero") < text.index("broken") < text.index("later")
    found = rows(text)
    assert "2 of 5" in found["zero"]
    assert "50.00%" in found["zero"]
    assert "interrupted" in found["zero"]
    assert "75.00%" in found["later"]
    assert "finished" in found["later"]
    assert "failed: no site is left" in found["broken"]
    table = json.loads(done(*words, "--json").out)
    assert [Path(run["folder"]).name for run in table["runs"]] == ["zero", "broken", "later"]
    assert table["events"][-1] == made.events()[-1]


def test_history_of_a_run_says_who_was_refused_and_why(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a")
    outcome = {"state": "failed", "cause": "the [disk] is full", "cure": "free some space"}
    write_run(made, "first", "2026-01-02T00:00:00+00:00", **{"job.json": outcome})
    text = done("federation", "history", "--federation", made.folder, "--run", "first").out
    found = rows(text)
    assert "3 of 3" in found["1"]
    assert "2 of 3" in found["2"]
    assert "b: site 'b' sent [NaN]" in found["2"]
    assert "The run stopped: the [disk] is full" in text
    words = ("federation", "history", "--federation", made.folder, "--run", "first", "--json")
    table = json.loads(done(*words).out)
    assert [line["round"] for line in table["rounds"]] == [1, 2]
    assert table["stopped"] == {"cause": "the [disk] is full", "cure": "free some space"}
    text = refused(7, "federation", "history", "--federation", made.folder, "--run", "second")
    assert "its runs are: first" in text
    (made.runs / "first" / "history.jsonl").write_text("no JSON\n")
    text = refused(7, "federation", "history", "--federation", made.folder, "--run", "first")
    assert "history.jsonl cannot be read" in text


def test_the_sites_log_shows_what_left_and_all_of_it(tmp_path: Path, monkeypatch) -> None:
    assert "does not contain a site" in refused(8, "site", "log", tmp_path)
    (tmp_path / "identity.toml").write_text("")
    log = SiteLog(tmp_path)
    log.write("started", images=1200, classes=2)
    log.write("update", run="0123456789abcdef", round=1, bytes=4000, vectors={"delta": 1000})
    log.write("figures", run="0123456789abcdef", round=1, bytes=500, protections=[])
    log.write("update", round=2, bytes=1, protections=["clip", {"name": "noise"}])
    log.write("refused", what="propose", why="its contract [says] no")
    monkeypatch.chdir(tmp_path)
    lines = done("site", "log").out.splitlines()
    found = {line.split()[2]: line for line in lines if line[1:3] == "20"}
    assert "01234567 " in lines[4]
    assert "delta: 1,000 values" in lines[4]
    assert "none" in found["figures"]
    assert 'clip, {"name": "noise"}' in found["update"]
    assert "propose: its contract [says] no" in found["refused"]
    assert next(line for line in lines if "total" in line).split() == [
        "total",
        "4,501",
        "4.5",
        "kB",
    ]
    assert [line["event"] for line in json.loads(done("site", "log", "--json").out)] == [
        *("started", "update", "figures", "update", "refused")
    ]


def test_the_sites_ledger_shows_entries_runs_and_epsilon(tmp_path: Path, monkeypatch) -> None:
    assert "does not contain a site" in refused(8, "site", "ledger", tmp_path)
    (tmp_path / "identity.toml").write_text("")
    (tmp_path / "site.toml").write_text("[contract]\nepsilon = 3.0\n")
    monkeypatch.chdir(tmp_path)
    text = done("site", "ledger").out
    assert "The data set 'images' has cost epsilon 0 at delta 1e-05 of 3 permitted." in text
    assert "The ledger is intact: 0 entries" in text
    ledger = Ledger(tmp_path)
    run = {"run": "0123456789abcdef", "program": "ab" * 32, "data_set": "images"}
    kinds = []
    for kind, round, size in (("declaration", 0, 100), ("update", 1, 4000), ("figures", 1, 500)):
        asked = {**run, "round": round, "question": kind, "asked_by": ("[anna]",)}
        ledger.append(LedgerEntry(kind, **asked))
        ledger.append(LedgerEntry("released", **asked, bytes=size, sha256=kind))
        kinds += [kind, "released"]
    text = done("site", "ledger").out
    assert "[anna]" in text
    assert rows(text)["01234567"].split() == ["01234567", "ab" * 6, "images", "1", "4,000", "600"]
    assert "an unbounded epsilon, because updates left without noise that counts" in text
    found = json.loads(done("site", "ledger", "--json").out)
    assert [one["kind"] for one in found["entries"]] == kinds
    assert found["runs"][0]["update_bytes"] == 4000
    assert found["head"]["number"] == 6
    assert found["epsilon"] == [
        {"data_set": "images", "spent": None, "permitted": 3.0, "delta": 1e-5}
    ]
    head = f"6:{found['head']['hash']}"
    assert done("site", "ledger", "--verify").out == (
        f"The ledger is intact: 6 entries. Its head is {head}\n"
    )
    assert "7 entries" in done("site", "ledger", "--verify", "--clock").out


def test_an_altered_ledger_is_told_with_its_entry(tmp_path: Path) -> None:
    (tmp_path / "identity.toml").write_text("")
    ledger = Ledger(tmp_path)
    for round in (1, 2, 3):
        ledger.append(LedgerEntry("update", run="r", round=round))
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":7'))
    for words in ((), ("--verify",), ("--json",)):
        text = refused(7, "site", "ledger", tmp_path, *words)
        assert "the site's ledger was altered: entry 2 does not fit the hash chain" in text


def test_what_left_several_sites(capsys: pytest.CaptureFixture[str]) -> None:
    update = {"event": "update", "bytes": 1000}
    members.show_departures({"a": [{"event": "joined"}, update, update], "b": []})
    found = rows(capsys.readouterr().out)
    assert found["a"].split() == ["a", "2", "2,000", "0", "0"]
    assert found["b"].split() == ["b", "0", "0", "0", "0"]


# Refusals


def test_a_site_that_was_never_admitted_cannot_be_revoked(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a")
    text = refused(8, "federation", "revoke", "b", "--federation", made.folder)
    assert "'b' was never admitted" in text
    assert "the admitted sites are: a" in text


def test_a_site_is_revoked_while_the_server_does_not_run(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a", "b", port=server.free_port())
    words = ("federation", "revoke", "a", "--federation", made.folder, "--why", "stolen")
    assert "it will refuse the site when it starts" in done(*words).out
    assert made.revoked() == {"a": "stolen"}
    with mock.patch.object(supervisor.Supervisor, "run", lambda self, say, *look: say("here")):
        text = done("server", "start", "--federation", made.folder).out
    assert text.endswith("here\n")
    kit = made.folder / "server" / "kit"
    assert json.loads((kit / "disabled_clients.json").read_text()) == {"disabled_clients": ["a"]}
    assert (kit / "local" / "authorization.json").exists()


def refuse(federation: FederationFolder, site: str) -> bool:
    """A server that does not answer."""
    raise DeployError("the server cannot be reached", "check that it is running")


def test_the_sites_are_told_of_a_revocation_even_if_the_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(tmp_path / "wards", "a", "b")
    authorities.give(made.folder)
    monkeypatch.setattr(server, "disable_site", refuse)
    text = refused(8, "federation", "revoke", "a", "--federation", made.folder)
    assert "the server cannot be reached" in text
    assert made.revocations.names == ("a",)


@pytest.mark.parametrize("key", [None, b"torn"])
def test_a_connection_is_dropped_even_if_the_list_cannot_be_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes | None
) -> None:
    made = federation(tmp_path / "wards", "a", "b")
    if key is not None:
        authorities.give(made.folder)
        (made.folder / "ca" / AUTHORITY_KEY).write_bytes(key)
    monkeypatch.setattr(server, "disable_site", lambda folder, site: site == "a")
    text = done("federation", "revoke", "a", "--federation", made.folder).out
    assert "Revoked 'a': the server has dropped its connection" in text
    assert "so the sites are not told" in text
    assert made.revoked() == {"a": "revoked"}
    assert not made.lists_revoked


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = refused(8, "server", "start", "--federation", made.folder, "--port", port)
    assert f"cannot listen on port {port}" in text
    assert FederationFolder.open(made.folder).invitation.port == 8002


def test_two_servers_of_one_federation_are_refused(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards")
    with supervisor.exclusive(made.folder / "server", "the server"):
        text = refused(8, "server", "start", "--federation", made.folder)
    assert "the server of federation 'wards' is already running" in text


def test_without_the_deployment_engine_one_cure(tmp_path: Path, monkeypatch) -> None:
    made = federation(tmp_path / "wards", "a")
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    for words in (
        ["federation", "init", "new"],
        ["federation", "admit", "a.request.zip"],
        ["federation", "demo"],
        ["server", "start"],
        ["site", "init", made.folder / "invitation.toml", "--name", "a"],
        ["site", "start", "a"],
        ["run", config, "--federation", made.folder],
    ):
        assert "pip install 'fedsight[deploy]'" in refused(8, *words), words
    assert not (tmp_path / "new").exists()
    assert not any(made.runs.iterdir())


def test_what_a_run_on_a_federation_cannot_do(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a")
    config = write_config(tmp_path)
    there = ("--federation", made.folder)
    text = refused(2, "compare", config, *there)
    assert "the baselines need all data in one place" in text
    assert "--workers" in refused(2, "run", config, *there, "--workers", 2)
    text = refused(7, "run", config, *there, "--out", tmp_path / "mine")
    assert "cannot be in" in text
    assert f"--out {made.runs / 'mine'}" in text
    assert "does not contain a federation" in refused(
        8, "run", config, "--federation", tmp_path / "none"
    )
    assert not any(made.runs.iterdir())


def test_a_run_on_a_federation_is_resumed_there(tmp_path: Path, monkeypatch) -> None:
    made = federation(tmp_path / "wards", "a")
    run = write_run(made, "first", "2026-01-02T00:00:00+00:00")
    assert "--workers" in refused(2, "resume", run, "--workers", 2)
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    assert "fedsight[deploy]" in refused(8, "resume", run), "the federation around it was found"
    alone = run.rename(tmp_path / "alone")
    assert "elsewhere does not contain a federation" in refused(8, "resume", alone)


def test_a_finished_run_needs_no_site_to_be_shown_again(tmp_path: Path) -> None:
    pytest.importorskip("nvflare")
    done("run", write_config(tmp_path), "--out", tmp_path / "run", "--workers", 1)
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "federation": "gone"}))
    assert "federated" in done("resume", tmp_path / "run").out


def test_names_and_files_that_do_not_fit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = federation(tmp_path / "wards", "a")
    invitation = made.folder / "invitation.toml"
    assert "cannot be the name of the federation" in refused(8, "federation", "init", "my wards")
    assert "is not empty" in refused(8, "federation", "init", "wards")
    assert "is not an invitation" in refused(8, "site", "init", tmp_path / "no.toml", "--name", "a")
    assert "cannot be the name of the site" in refused(
        8, "site", "init", invitation, "--name", "a b"
    )
    assert "does not contain a site" in refused(8, "site", "start", tmp_path, "--data", "x")
    (tmp_path / "a.request.zip").write_text("no archive")
    assert "is not a signing request" in refused(8, "federation", "admit", "a.request.zip")
    assert cli("federation", "init", "new", "--port", "70000").code == 2
    assert cli("site", "init", invitation).code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not an empty folder" in refused(7, "federation", "demo", "--keep", "full")


def test_help_needs_neither_torch_nor_the_deployment_engine() -> None:
    code = (
        "import sys; from fedsight.cli import main\n"
        "sys.argv = ['fedsight', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'nvflare', 'numpy'} & set(sys.modules)"
    )
    for words in (["--help"], ["federation", "demo", "--help"], ["site", "start", "--help"]):
        made = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, check=False
        )
        assert made.returncode == 0, made.stderr.decode()


def test_status_needs_neither_torch_nor_the_deployment_engine(tmp_path: Path) -> None:
    made = federation(tmp_path / "wards", "a")
    code = (
        "import sys; from fedsight.cli import main\n"
        f"sys.argv = ['fedsight', 'federation', 'status', '--federation', {str(made.folder)!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'nvflare'} & set(sys.modules)"
    )
    made_of = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert made_of.returncode == 0, made_of.stderr.decode()


def test_the_module_is_the_command() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "fedsight", "--version"], capture_output=True, check=True
    )
    assert made.stdout.startswith(b"fedsight ")


# A round trip with real keys


@dataclass(frozen=True)
class Made:
    """A federation and a site made by the commands alone, and what they said."""

    root: Path
    init: str
    ask: str
    admit: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("nvflare")
    root = tmp_path_factory.mktemp("trip")
    init = done("federation", "init", root / "wards", "--port", 18777).out
    invitation = root / "wards" / "invitation.toml"
    ask = done("site", "init", invitation, "--name", "ward-3", "--dir", root / "site").out
    request = root / "ward-3.request.zip"
    (root / "site" / request.name).rename(request)
    answer = done("federation", "admit", request, "--federation", root / "wards", "--days", 30)
    return Made(root, init, ask, answer.out)


def test_the_commands_say_what_comes_next(made: Made) -> None:
    mark = FederationFolder.open(made.root / "wards").invitation.fingerprint
    assert mark.startswith("SHA256:")
    assert mark in made.init
    assert mark in made.ask
    assert str(made.root / "wards" / "invitation.toml") in made.init
    assert str(made.root / "site" / "ward-3.request.zip") in made.ask
    assert str(made.root / "ward-3.signed.zip") in made.admit
    assert "Admitted 'ward-3' to 'wards' for 30 days" in made.admit
    assert (
        "never"
        in rows(done("federation", "status", "--federation", made.root / "wards").out)["ward-3"]
    )


def test_a_site_that_was_not_admitted_says_so(made: Made) -> None:
    text = refused(8, "site", "start", made.root / "site", "--data", "fashion-mnist-12k")
    assert "has not been admitted yet" in text


def test_another_name_or_federation_needs_another_folder(made: Made, tmp_path: Path) -> None:
    invitation = made.root / "wards" / "invitation.toml"
    text = refused(8, "site", "init", invitation, "--name", "b", "--dir", made.root / "site")
    assert "is not empty" in text
    other = federation(tmp_path / "other").folder / "invitation.toml"
    text = refused(8, "site", "init", other, "--name", "ward-3", "--dir", made.root / "site")
    assert "belongs to another federation ('wards'" in text


def test_site_and_server_start_and_move_to_another_port(made: Made) -> None:
    wards, site = made.root / "wards", made.root / "site"
    signed = made.root / "ward-3.signed.zip"
    with mock.patch.object(supervisor.Supervisor, "run", lambda self, say, *look: say("here")):
        words = ("site", "start", site, "--data", "fashion-mnist-12k")
        text = done(*words, "--admission", signed).out
        assert "10,000 training images" in text
        assert text.endswith("connecting to localhost:18777\nhere\n")
        port = server.free_port()
        text = done("server", "start", "--federation", wards, "--port", port).out
        assert f"the server now uses port {port}: send the new" in text
        assert f"listens on localhost:{port}" in text
        assert "now uses" not in done("server", "start", "--federation", wards).out
        text = done(
            "site", "init", wards / "invitation.toml", "--name", "ward-3", "--dir", site
        ).out
        assert f"will connect to localhost:{port}" in text
        assert f"connecting to localhost:{port}" in done(*words).out
    assert Invitation.read(wards / "invitation.toml").port == port
    identity = tomllib.loads((site / "identity.toml").read_text())
    assert identity["federation"]["port"] == port
    for path in (
        wards / "server/kit/startup/fed_server.json",
        wards / "operator/kit/startup/fed_admin.json",
        site / "kit/startup/fed_client.json",
    ):
        text = path.read_text()
        assert str(port) in text
        assert "18777" not in text
    assert "18777" not in (wards / "profile.yml").read_text()
    assert FederationFolder.open(wards).events()[-1]["event"] == "moved"


def test_a_site_does_not_start_on_a_device_that_is_not_there(made: Made, tmp_path: Path) -> None:
    """Otherwise it would connect, and each run would fail at it."""
    settings = tmp_path / "site.toml"
    settings.write_text('[data]\nname = "fashion-mnist-12k"\n[speed]\ndevice = "cuda:99"\n')
    with mock.patch.object(supervisor.Supervisor, "run", lambda self, say, *look: say("here")):
        text = refused(2, "site", "start", made.root / "site", "--contract", settings)
    assert "speed.device" in text
    assert "cuda:99" in text


def test_a_revoked_site_is_not_admitted_again(made: Made) -> None:
    wards = made.root / "wards"
    done("federation", "revoke", "ward-3", "--federation", wards, "--why", "stolen")
    text = refused(
        8, "federation", "admit", made.root / "ward-3.request.zip", "--federation", wards
    )
    assert "site 'ward-3' was revoked: stolen" in text


def test_a_failed_demo_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("nvflare")
    from fedsight.deploy import demo

    home = tmp_path / "site-00"
    home.mkdir()
    made = federation(tmp_path / "wards", "site-00")
    processes: list[Process] = []

    def fail() -> None:
        with demo.all_ended() as running:
            lasting = [sys.executable, "-c", "import time; time.sleep(60)"]
            running[tmp_path] = subprocess.Popen(lasting)
            running[home] = demo.launch(["site", "start", str(home)], home)
            processes.extend(running.values())
            demo.wait_for(made, ["site-00"], running)

    with pytest.raises(DeployError) as caught:
        fail()
    assert "the process of site-00 ended" in str(caught.value)
    assert "does not contain a site" in str(caught.value)
    check_message(f"Error: {caught.value}")
    assert all(process.poll() is not None for process in processes)
