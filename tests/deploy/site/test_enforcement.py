"""Contract enforcement: nothing leaves a site that its contract or its ledger does not permit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
import tomli_w
from site_services import FaultyLink, Places

from fedsight.core.errors import DeployError
from fedsight.core.package import installed
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.answers import Answer
from fedsight.deploy.site.enforcement import ContractEnforcement, Requester
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.release import Question, digest_of
from fedsight.deploy.site.service import SiteService
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.privacy.accounting import spent
from fedsight.privacy.event import gaussian
from fedsight.program.program import Program

DATA = {"name": "fashion-mnist-12k"}


@pytest.fixture
def home(tmp_path: Path, site_images: Path) -> Path:
    folder = tmp_path / "ward"
    folder.mkdir()
    write(folder, site_images)
    return folder


def write(folder: Path, images: Path, **contract: Any) -> None:
    owner = {"data": {"name": "folder", "path": str(images / "north")}, "contract": contract}
    (folder / "owner.toml").write_text(tomli_w.dumps(owner))


def answer_to_proposal(service: SiteService, program: Program, **changes: Any) -> dict[str, Any]:
    """The final answer to a proposal."""
    fields = {"run": "abc1", "program": program.table(), "fingerprint": program.fingerprint}
    fields["package"] = installed().table()
    answer = json.loads(
        service.answer("propose", json.dumps({**fields, "sites": 3, **changes}), b"")[0]
    )
    if "ticket" in answer:
        wait = {"ticket": answer["ticket"], "seconds": 30}
        answer = json.loads(service.answer("wait", json.dumps(wait), b"")[0])
    return dict(answer)


def test_a_contract_counts_the_replies_of_a_buffered_round(home: Path, site_images: Path) -> None:
    write(home, site_images, sites=3)
    for buffer, why in ((3, None), (2, "requires at least 3 sites, and there are 2")):
        rounds = {"mode": "buffered", "buffer": buffer}
        program = site_services.program(site_images, rounds=rounds)
        service = SiteService(home, "ward")
        answer = answer_to_proposal(service, program, sites=4)
        service.close()
        assert (answer.get("error") is None) if why is None else why in answer["error"]


# Who may start a job


def test_only_a_job_that_a_listed_operator_signed_is_answered(
    home: Path, site_images: Path
) -> None:
    program = site_services.program(site_images)
    write(home, site_images, operators=["anna"])
    mark = program.fingerprint
    for requester, why in (
        (None, "contract.operators: no operator has signed the job"),
        (
            Requester(("ben",), mark),
            "contract.operators: the contract does not list the operator ben",
        ),
        (
            Requester(("anna",), "0" * 64),
            "contract.operators: anna signed the program 000000000000",
        ),
        (
            Requester(("anna",), ""),
            "contract.operators: anna signed the program without a fingerprint",
        ),
    ):
        service = SiteService(home, "north", requester)
        answer = answer_to_proposal(service, program)
        service.close()
        assert answer["error"].startswith(why)
        assert set(answer) == {"error", "cure", "final"}
    assert {entry.kind for entry in Ledger(home).entries()} == {"refused"}


def test_an_owner_may_pin_the_code_that_runs_here_and_at_the_coordinator(
    home: Path, site_images: Path
) -> None:
    program, ours = site_services.program(site_images), installed()
    service = SiteService(home, "north")
    for pinned, stated, fits in (
        ([], ours.table(), True),
        ([ours.sha256], ours.table(), True),
        ([ours.sha256], {**ours.table(), "sha256": "e" * 64}, False),
        ([ours.sha256], None, False),
        (["e" * 64], ours.table(), False),
    ):
        write(home, site_images, packages=pinned)
        answer = answer_to_proposal(service, program, package=stated)
        assert ("error" not in answer) == fits
        assert fits or answer["error"].startswith("contract.packages: the contract does not list")
    service.close()


def test_the_operators_who_signed_the_job_are_in_the_ledger(home: Path, site_images: Path) -> None:
    program = site_services.program(site_images)
    write(home, site_images, operators=["anna"], data_set="wards 1 to 3")
    service = SiteService(home, "north", Requester(("anna", "ben"), program.fingerprint))
    declared = answer_to_proposal(service, program)["declared"]
    service.close()
    asked, left = Ledger(home).entries()
    for entry, kind in ((asked, "declaration"), (left, "released")):
        assert (entry.kind, entry.run, entry.asked_by) == (kind, "abc1", ("anna", "ben"))
        assert (entry.data_set, entry.program) == ("wards 1 to 3", program.fingerprint)
    assert (asked.question, asked.bytes) == (left.question, 0)
    text = json.dumps({"declared": declared}, sort_keys=True)
    assert left.bytes == len(text)
    assert left.declared == left.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_refusal_names_the_clause(home: Path, site_images: Path) -> None:
    program = site_services.program(site_images)
    service = SiteService(home, "north")
    for contract, why in (
        ({"require": ["secure_aggregation"]}, "contract.require: secure_aggregation is required"),
        ({"epsilon": 3.0}, "contract.epsilon: the program adds no noise at the site"),
        ({"rounds": 1}, "contract.rounds: the contract permits 1 rounds, and the program has 2"),
        ({"epsilom": 3.0}, "contract.epsilom: there is no such setting"),
        ({"sites": 0}, "contract.sites: 0 does not fit"),
    ):
        write(home, site_images, **contract)
        answer = answer_to_proposal(service, program)
        assert answer["error"].startswith(why), answer
    (home / "owner.toml").write_text("[contract]\nsites = ")
    assert set(answer_to_proposal(service, program)) == {"error", "cure"}
    service.close()
    (first, *others) = Ledger(home).entries()
    assert {entry.kind for entry in (first, *others)} == {"refused"}
    assert (first.run, first.program) == ("abc1", program.fingerprint)
    assert first.why.startswith("contract.require: secure_aggregation is required")


# The ledger


def alter(home: Path, number: int) -> None:
    table = sqlite3.connect(home / "ledger.sqlite")
    table.execute("DROP TRIGGER no_update")
    change = "UPDATE entries SET body = replace(body, 'a', 'b') WHERE number = ?"
    table.execute(change, (number,))
    table.commit()
    table.close()


def test_a_site_with_an_altered_ledger_declares_nothing(home: Path, site_images: Path) -> None:
    program = site_services.program(site_images)
    written = Ledger(home)
    for run in ("one", "two", "three"):
        written.append(LedgerEntry("update", run=run, sha256="a"))
    alter(home, 2)
    service = SiteService(home, "north")
    answer = answer_to_proposal(service, program)
    service.close()
    assert answer["error"] == "the site's ledger was altered: entry 2 does not fit the hash chain"
    assert "nothing leaves this site" in answer["cure"]
    assert set(answer) == {"error", "cure"}


def test_every_update_and_figure_has_its_entry_before_it_leaves(
    places: Places, site_images: Path
) -> None:
    program = site_services.program(site_images)
    south = places.root / "south"
    left: list[tuple[str, int]] = []

    def check(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        fields = json.loads(text)
        done = kind in ("train", "measure", "wait") and fields.get("done")
        if done and "round" in fields:
            what = "update" if "weight" in fields else "figures"
            charged, last = Ledger(south).entries()[-2:]
            assert (charged.kind, charged.round) == (what, fields["round"])
            assert (last.kind, last.question) == ("released", charged.question)
            left.append((what, last.round))
        return text, data

    federation, link = places.meet(program)
    before = len(Ledger(south).entries())
    site_services.learn(federation, FaultyLink(link, "south", check))
    found = Ledger(south).entries()[before:]
    assert [(one.kind, one.round) for one in found[::2]] == left
    assert left == [("update", 1), ("figures", 1), ("update", 2), ("figures", 2)]
    assert {one.run for one in found} == {places.memory("south").name}
    logged = [line for line in places.log("south") if line.get("run") == found[0].run][1:]
    assert [line["bytes"] for line in logged] == [
        one.bytes for one in found if one.kind == "released"
    ]


@pytest.mark.parametrize("fault", ["altered", "unwritable"])
def test_without_its_ledger_nothing_leaves(places: Places, site_images: Path, fault: str) -> None:
    program = site_services.program(site_images, rounds={"quorum": 2})
    federation, link = places.meet(program)
    home = places.root / "south"
    kept = {name: (home / name).read_bytes() for name in ("ledger.sqlite", "ledger.head")}
    if fault == "altered":
        alter(home, 1)
    else:
        (home / "ledger.sqlite").unlink()
        (home / "ledger.sqlite").mkdir(mode=0o700)

    def check(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        assert not data
        assert not json.loads(text).keys() & {"weight", "metrics"}
        return text, data

    diary = site_services.federations.Diary()
    try:
        site_services.learn(federation, FaultyLink(link, "south", check), diary)
    finally:
        if fault == "unwritable":
            (home / "ledger.sqlite").rmdir()
            (home / "ledger.sqlite").touch(0o600)
        for name, data in kept.items():
            (home / name).write_bytes(data)
    why = "entry 1 does not fit" if fault == "altered" else "cannot be read or written"
    for line in diary.lines:
        assert line["sites"] == ["north", "west"]
        assert why in line["rejected"]["south"]


def test_a_round_that_the_program_does_not_have_is_not_trained(
    places: Places, site_images: Path
) -> None:
    _, link = places.meet(site_services.program(site_images))
    for round in (0, 3, 10**6):
        header = {"round": round, "attempt": 0, "sites": 3}
        text, _ = link.ask("south", "train", header, b"", 9)
        assert json.loads(text)["error"] == f"the program has 2 rounds; there is no round {round}"


def test_a_refusal_reaches_the_coordinator_with_its_clause(
    places: Places, site_images: Path
) -> None:
    before = (places.root / "west" / "owner.toml").read_text()
    data = {"name": "folder", "path": str(site_images / "west")}
    places.write_owner("west", {"data": data, "contract": {"require": ["secure_aggregation"]}})
    try:
        found, absent, _, _ = propose(
            site_services.program(site_images), "refused1", places.sit(), {}
        )
    finally:
        (places.root / "west" / "owner.toml").write_text(before)
    assert set(found) == {"north", "south"}
    assert absent["west"].startswith("site 'west': contract.require: secure_aggregation")


# Epsilon over all runs

NOISE = {"kind": "gaussian", "noise": 4.0, "neighbours": "add_remove"}


def noised(privacy: str, **sections: Any) -> Program:
    """A program of 20 rounds with noise by this mechanism."""
    rounds = {"rounds": 20, "weighting": "uniform", **sections.pop("rounds", {})}
    return federations.program(
        privacy={"name": privacy, "noise_multiplier": 4.0}, rounds=rounds, **sections
    )


def begin_run(home: Path, run: str, privacy: str = "local", **contract: Any) -> ContractEnforcement:
    """Contract enforcement in a run with noise."""
    (home / "owner.toml").write_text(tomli_w.dumps({"data": DATA, "contract": contract}))
    program = noised(privacy)
    enforcement = ContractEnforcement(home, Requester())
    enforcement.begin_run(program, enforcement.check_program(program, 3), run)
    return enforcement


def release(enforcement: ContractEnforcement, round: int, event: Any = NOISE) -> None:
    """Release an update whose noise is this event."""
    question = Question("update", digest_of(round), "training", round, round)
    enforcement.release.answer(question, (event, 1), lambda: Answer({}, b"update"))


def test_nothing_leaves_once_epsilon_is_spent_over_runs_and_jobs(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    rounds = 0
    for run in ("one", "two", "three", "four"):
        with contextlib.suppress(DeployError):
            enforcement = begin_run(tmp_path, run, epsilon=3.4)
            for round in (1, 2, 3):
                release(enforcement, round)
                rounds += 1
    assert rounds == 10, "known answer: ten rounds cost 3.341"
    with pytest.raises(DeployError, match=r"contract\.epsilon: this update .* 3\.4 is permitted"):
        release(enforcement, 9)
    with pytest.raises(DeployError, match=r"contract\.epsilon: 3 is permitted and 3\.34"):
        begin_run(tmp_path, "five", epsilon=3.0)
    logged = [line for line in SiteLog(tmp_path).read() if line["event"] == "update"]
    assert len(logged) == 10
    assert logged[0]["protections"] == ["local_dp"]
    release(begin_run(tmp_path, "six", epsilon=3.4, data_set="others"), 1)


@pytest.mark.parametrize(
    ("privacy", "sections", "why"),
    [
        ("local", {"rounds": {"weighting": "samples"}}, "an update's weight would reveal"),
        ("distributed", {}, "each site adds only a share of the noise"),
        ("distributed", {"secure": {"name": "quantised"}}, "each site adds only a share"),
    ],
)
def test_a_site_refuses_a_program_whose_epsilon_would_not_hold(
    tmp_path: Path, privacy: str, sections: dict[str, Any], why: str
) -> None:
    """Independently of the coordinator's own check."""
    (tmp_path / "owner.toml").write_text(tomli_w.dumps({"data": DATA}))
    with pytest.raises(DeployError, match=f"the program is unsound: under privacy '.*': {why}"):
        ContractEnforcement(tmp_path, Requester()).check_program(noised(privacy, **sections), 3)


def test_an_update_without_accounted_noise_does_not_leave(tmp_path: Path) -> None:
    enforcement = begin_run(tmp_path, "one", epsilon=3.0)
    with pytest.raises(DeployError, match=r"contract\.epsilon: the update would leave without"):
        release(enforcement, 1, event=None)
    assert Ledger(tmp_path).entries() == []


def test_noise_that_the_coordinator_promises_is_recorded_as_promised(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    with pytest.raises(DeployError, match="noise that the coordinator promises"):
        begin_run(tmp_path, "one", "central", epsilon=3.0)
    trusting = {"epsilon": 3.0, "trust_coordinator_noise": True}
    enforcement = begin_run(tmp_path, "one", "central", **trusting)
    release(enforcement, 1)
    release(enforcement, 1)  # the same bytes, which may be summed again with fresh noise
    entries = Ledger(tmp_path).entries()
    assert [one.kind for one in entries] == ["update", "released", "update"]
    assert all((one.enforced, one.event) == (False, NOISE) for one in entries[::2])
    assert entries[0].protections == ("client_dp",)
    with pytest.raises(DeployError, match=r"3 is permitted and inf is spent"):
        begin_run(tmp_path, "two", epsilon=3.0)


def test_real_sites_are_charged_until_epsilon_is_spent(places: Places, site_images: Path) -> None:
    pytest.importorskip("dp_accounting")
    program = site_services.program(
        site_images,
        privacy={"name": "local", "noise_multiplier": 8.0},
        rounds={"weighting": "uniform"},
    )
    home = places.root / "south"
    before = (home / "owner.toml").read_text()
    data = {"name": "folder", "path": str(site_images / "south")}
    event = gaussian(8.0, "replace_one")
    limit = spent([(event, 3)], 1e-5) + 0.01
    contract = {"epsilon": limit, "figures": "exact", "data_set": "noised"}
    diaries = []
    try:
        places.write_owner("south", {"data": data, "contract": contract})
        for run in ("noised1", "noised2"):
            quorum = replace(program, rounds=program.rounds.model_copy(update={"quorum": 2}))
            federation, link = places.meet(quorum, places.sit(), run=run)
            diaries.append(site_services.federations.Diary())
            site_services.learn(federation, link, diaries[-1])
    finally:
        (home / "owner.toml").write_text(before)
    found = [one for one in Ledger(home).entries() if one.data_set == "noised"]
    updates = [one for one in found if one.kind == "update"]
    assert [(one.run, one.round) for one in updates] == [
        *(("noised1", 1), ("noised1", 2), ("noised2", 1)),
    ]
    assert all(one.event == event.table() and one.enforced for one in updates)
    assert all(one.protections == ("local_dp",) for one in updates)
    took_part = [line["sites"] for diary in diaries for line in diary.lines]
    assert ["south" in sites for sites in took_part] == [True, True, True, False]
    why = diaries[1].lines[1]["rejected"]["south"]
    assert "contract.epsilon: this update would raise the cost to epsilon" in why
