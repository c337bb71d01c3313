"""What is seen of a site: nothing that depends on its images, and it holds no round up."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import authorities
import pytest
import tomli_w
from clocks import heard_ago

from fedsight.core.errors import StoreError
from fedsight.core.files import append_line
from fedsight.deploy.membership import presence
from fedsight.deploy.monitoring import look as common
from fedsight.deploy.monitoring import site_look
from fedsight.deploy.monitoring.look import Look
from fedsight.deploy.monitoring.metrics import METRICS, exposition
from fedsight.deploy.monitoring.settings import HookSettings
from fedsight.deploy.monitoring.site_look import LedgerReader, SiteLook
from fedsight.deploy.site import state
from fedsight.deploy.site.log import SiteLog
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

NOISE = {"kind": "gaussian", "noise": 2.0, "neighbours": "add_remove"}
CONTRACT = {"epsilon": 100.0, "delta": 1e-5, "data_set": "films"}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, what was spent is known at once."""
    monkeypatch.setattr(site_look, "ACCOUNTING_WAIT", 60.0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_owner(tmp_path)
    return tmp_path


def write_owner(home: Path, contract: dict[str, Any] = CONTRACT) -> None:
    table = {"data": {"name": "fashion-mnist-12k"}, "contract": contract}
    (home / "owner.toml").write_text(tomli_w.dumps(table))


def looks_at(home: Path, known: dict[str, Any] | None = None, **hooks: Any) -> SiteLook:
    return SiteLook(home, HookSettings(**hooks), time.time(), known or {})


def told(look: Look) -> list[str]:
    return [one.event for one in look.happened if "certificate" not in one.event]


def train(home: Path, rounds: int) -> None:
    ledger = Ledger(home)
    for round in range(1, rounds + 1):
        about: dict[str, Any] = {"run": "1", "program": "f" * 64, "round": round}
        about |= {"data_set": "films", "question": f"{round:064x}"}
        ledger.append(LedgerEntry("update", **about, event=NOISE, enforced=True))
        ledger.append(LedgerEntry("released", **about, bytes=1000, sha256="0" * 64))


def whole(look: Look) -> dict[str, dict[str, float]]:
    look.set("up_to_date_seconds", 1.0)
    look.set("healthy", 0.0)
    look.values["hooks_total"] = {}
    return look.values


def test_every_metric_is_there_from_the_start(home: Path) -> None:
    authorities.show(home)
    values = whole(looks_at(home).look())
    assert values.keys() == METRICS["site"].keys()
    assert exposition("site", values)


def test_ledger_and_budget(home: Path) -> None:
    train(home, 3)
    look = looks_at(home).look()
    assert look.values["ledger_entries"] == {"": 6}
    assert look.values["updates_total"] == {"": 3}
    assert look.values["updates_bytes_total"] == {"": 3000}
    spent = Ledger(home).spent("films", 1e-5)
    assert 0 < spent < 5
    assert look.values["epsilon_spent"] == {"films": 5.0}  # a twentieth of what is permitted
    assert look.values["epsilon_permitted"] == {"films": 100.0}
    assert "budget_near_end" not in told(look)
    write_owner(home, {**CONTRACT, "epsilon": spent / 0.93})
    look = looks_at(home).look()
    (near,) = (one for one in look.happened if one.event == "budget_near_end")
    assert near.facts["data_set"] == "films"
    assert near.facts["spent_at_least"] == pytest.approx(0.9 * spent / 0.93, rel=1e-4)
    assert "budget_near_end" not in told(looks_at(home, budget=0.95).look())


def test_numbers_of_images_show_nowhere(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two sites that differ in nothing but their images look the same."""
    texts = []
    for place, images in ((home, 12), (tmp_path_factory.mktemp("other"), 48_611)):
        write_owner(place)
        seen = looks_at(place)
        (place / "declared.json").write_text(json.dumps({"train": images, "test": images}))
        log = SiteLog(place)
        log.write("started", images=images, classes=3)
        log.write("joined", run="1", round=0, images=images, bytes=200 + len(str(images)))
        declared = LedgerEntry("released", question="d", bytes=200 + len(str(images)))
        Ledger(place).append(declared)
        log.write("refused", what="train", why=f"/srv/films/Muster_{images}.png: cannot be read")
        look = seen.look()
        for name in ("disk_free_bytes", "memory_bytes", "start_time_seconds"):
            look.values[name] = {}
        lines = [(one.event, one.facts) for one in look.happened]
        texts.append((exposition("site", whole(look)), look.reasons, lines))
    assert texts[0] == texts[1]
    assert "Muster" not in str(texts)


def test_the_budget_is_told_in_steps(home: Path) -> None:
    """The cost of a round depends on how many images there are: a reader learns little of it."""
    train(home, 1)
    one = looks_at(home).look().values["epsilon_spent"]
    train(home, 2)  # two more
    assert looks_at(home).look().values["epsilon_spent"] == one


def test_refusals_by_clause_whatever_the_coordinator_writes(home: Path) -> None:
    seen = looks_at(home)
    log = SiteLog(home)
    for times in (1, 10, 100):
        log.write("refused", what="propose", why="contract.rounds: too many", times=times)
    for number in range(50):
        log.write("refused", what="x" * 1000, why=f"contract.made_up_{number}", run="\x1b" * 1000)
    append_line(log.path, {"event": "z" * 5000, "run": ["\n"] * 1000, "round": None})
    look = seen.look()
    assert look.values["refusals_total"] == {"rounds": 100, "other": 50}
    assert all(len(json.dumps(one.facts)) < 2000 for one in look.happened)
    assert all(text.isprintable() for one in look.happened for text in map(str, one.facts.values()))
    assert looks_at(home).look().values["refusals_total"] == {}  # since the start


def test_connection_lost_and_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_look, "LEAST_SILENCE", 0.0)
    seen = looks_at(home, lost_after=0.0)
    look = seen.look()
    assert look.values["connected"] == {"": 0}
    assert look.reasons == ["the server does not answer"]
    assert told(look) == []  # it never did
    presence.record_answer(home)
    look = seen.look()
    assert (look.reasons, told(look)) == ([], ["server_answers"])
    heard_ago(home / "server_answered", 60)
    assert told(seen.look()) == ["server_lost"]
    assert told(looks_at(home, seen.known, lost_after=0.0).look()) == []


def test_health_names_what_is_wrong(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presence.record_answer(home)
    train(home, 1)
    assert looks_at(home).look().reasons == []
    (home / "ledger.head").rename(home / "elsewhere")
    assert looks_at(home).look().reasons == ["a part of the ledger is missing"]
    (home / "elsewhere").rename(home / "ledger.head")
    (home / "owner.toml").write_text("[contract]\nround = 3\n")
    assert looks_at(home).look().reasons == ["the contract cannot be read"]
    write_owner(home)
    monkeypatch.setattr(common, "LEAST_ROOM", 1 << 62)
    assert looks_at(home).look().reasons == ["the disk is nearly full"]
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert looks_at(home).look().reasons == ["the ledger cannot be written"]


def test_work_and_drain(home: Path) -> None:
    state.drain(home, True)
    with state.at_work(home, os.getpid(), "training in round 7"):
        look = looks_at(home).look()
    assert [look.values[name][""] for name in ("working", "round", "drained")] == [1, 7, 1]
    look = looks_at(home).look()
    assert [look.values[name][""] for name in ("working", "round")] == [0, 0]


def test_reading_the_ledger_takes_no_lock_of_those_who_write(home: Path) -> None:
    """Neither waits for the other: a site's processes take a lock, which this one leaves alone."""
    train(home, 2)
    ledger, reader = Ledger(home), LedgerReader(home)
    with ledger._file.open() as table:
        table.execute("BEGIN EXCLUSIVE")
        reader.read()  # gives up at once
        assert reader.number == 0
        table.execute("ROLLBACK")
        reader.read()
        assert reader.number == 4
    (home / "ledger.head").write_text("[9, 0]")
    with pytest.raises(StoreError):  # what it does not verify, the site does
        Ledger(home)
