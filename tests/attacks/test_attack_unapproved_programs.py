"""A coordinator that has a site train what its owner has not approved, or that buries the owner in
programs, where the contract leaves each program to the owner."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program
from site_folders import ask, make_site, some_program

from fedsight.core.text import is_printable
from fedsight.deploy.site import approvals
from fedsight.deploy.site.enforcement import ContractEnforcement, Requester
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.service import SiteService
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]
WAITS = "contract.approval: this program waits for the approval of the site's owner"


@pytest.fixture
def site(attack: Attack, tmp_path: Path) -> AttackedSite:
    draw(tmp_path / "images", noise_images(6))
    made = attack("one", tmp_path / "images", approval=True)
    (made.home / "identity.toml").touch()
    return made


def of(tmp_path: Path, **sections: Any) -> Any:
    return program(tmp_path / "images", **sections)


def test_a_changed_program_under_an_approved_name_waits(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, changed = of(tmp_path), of(tmp_path, train={"lr": 0.2})
    assert good.name == changed.name
    answer = site.join(good)
    assert answer["error"] == WAITS
    assert "final" not in answer, "the run may ask again"
    assert "not joined a run" in site.train(known(good).initial)[0]["error"]
    approvals.decide(site.home, good.fingerprint, approve=True)
    assert "declared" in site.join(good)
    assert site.join(changed)["error"] == WAITS
    kinds = [entry.kind for entry in Ledger(site.home).entries()]
    assert kinds == ["approved", "declaration", "released"], "what waits is not refused"
    held = [line["what"] for line in SiteLog(site.home).read() if line.get("why") == WAITS]
    assert set(held) == {"held"}

    def by_name(home: Path, ledger: Any, program: Any, asked: Any) -> None:
        names = {one.request.name for one in approvals.decided(home, ledger) if one.request}
        if asked.name not in names:
            raise AssertionError

    monkeypatch.setattr(approvals, "require", by_name)
    assert "declared" in site.join(changed), "bound to a name, it trains"


def test_what_a_held_program_is_told_does_not_depend_on_images(
    attack: Attack, tmp_path: Path
) -> None:
    draw(tmp_path / "images", noise_images(6))
    draw(tmp_path / "others", noise_images(9, seed=1))
    broken = draw(tmp_path / "broken", noise_images(6))
    for path in broken.rglob("*.png"):
        path.write_bytes(b"no image")
    folders = [tmp_path / name for name in ("images", "others", "broken", "nowhere")]
    for approval in (True, False):
        answers = [
            attack(f"{folder.name}-{approval}", folder, approval=approval).join(of(tmp_path))
            for folder in folders
        ]
        same = all(answer == answers[0] for answer in answers)
        assert same is approval, "without the clause, images are opened and the answers differ"


def test_a_program_that_is_refused_meanwhile_begins_no_further_round(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = of(tmp_path)
    vector = known(good).initial
    approvals.decide(site.home, good.fingerprint, approve=True)
    site.join(good)
    assert "error" not in site.train(vector)[0]
    approvals.decide(site.home, good.fingerprint, approve=False)
    assert "error" not in site.train(vector)[0], "what has left already is sent again"
    for answer in (
        site.train(vector + 1)[0],
        site.train(vector, round=2)[0],
        site.ask("measure", {"round": 1, "attempt": 1, "accepted": 0, "vector": 0})[0],
        site.ask("deliver", {"round": 1, "vector": 0})[0],
        site.join(good),
    ):
        assert "has refused this program" in answer["error"]
        assert answer["final"] is True
    site.restart()
    assert "has refused this program" in site.join(good)["error"]
    # One that asks only when a run begins would train on.
    monkeypatch.setattr(ContractEnforcement, "require_still_approved", lambda self: None)
    other = of(tmp_path, train={"lr": 0.3})
    approvals.decide(site.home, other.fingerprint, approve=True)
    site.join(other, "run2")
    assert "error" not in site.train(vector)[0]
    approvals.decide(site.home, other.fingerprint, approve=False)
    assert "error" not in site.train(vector + 1)[0], "it trains from another model, in that round"
    assert "error" not in site.train(vector, round=2)[0]


def kept(site: AttackedSite) -> list[str]:
    """What the coordinator has had the site keep of a model."""
    return [path.name for path in (site.home / "memory").rglob("kept-*.bin")]


def test_nothing_is_received_of_a_program_that_was_refused(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = of(tmp_path)
    frozen = known(good).initial[known(good).layout.kept]
    approvals.decide(site.home, good.fingerprint, approve=True)
    site.join(good)
    approvals.decide(site.home, good.fingerprint, approve=False)
    assert "has refused this program" in site.adopt(frozen)["error"]
    assert kept(site) == []
    monkeypatch.setattr(ContractEnforcement, "require_still_approved", lambda self: None)
    assert "error" not in site.adopt(frozen), "images are opened again, and the model is kept"
    assert len(kept(site)) == 1


ALICE = "alice@lyon.example"


def begun_again(site: AttackedSite, signed: Any) -> None:
    """A job that Alice has signed for one program, as whoever has the coordinator's machine can
    begin it again."""
    site.close()
    requester = Requester((ALICE,), signed.fingerprint)
    site.service = SiteService(site.home, site.home.name, requester)


def asked_by(site: AttackedSite) -> dict[str, tuple[str, ...]]:
    """Who has asked for the programs that wait, as the owner is told."""
    found = approvals.waiting(site.home, Ledger(site.home))
    return {one.fingerprint: one.asked_by for one in found}


def test_no_program_waits_in_the_name_of_who_has_not_signed_it(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "REPEATED", 0.0)
    signed, other = of(tmp_path), of(tmp_path, train={"lr": 0.3})
    begun_again(site, signed)
    site.join(signed)
    (honest,) = approvals.waiting(site.home, Ledger(site.home))
    begun_again(site, other)
    site.join(replace(signed, name="urgent"), "run2")
    (again,) = approvals.waiting(site.home, Ledger(site.home))
    assert replace(again, last=honest.last) == honest, "in whose name, under which"
    begun_again(site, signed)
    site.join(other)
    assert asked_by(site) == {signed.fingerprint: (ALICE,), other.fingerprint: ()}
    assert "error" in site.ask("propose", {"run": "r", "program": other.table(), "sites": 3})[0]
    by = {entry.program: entry.asked_by for entry in Ledger(site.home).entries()}
    assert ALICE not in by.get("", ())
    approvals.decide(site.home, other.fingerprint, approve=True)
    assert "declared" in site.join(other)
    assert {entry.asked_by for entry in Ledger(site.home).entries()} == {()}
    monkeypatch.setattr(Requester, "of", lambda self, program: self.operators)
    third = of(tmp_path, train={"lr": 0.4})
    site.join(third)
    assert asked_by(site)[third.fingerprint] == (ALICE,), "whom the owner may trust"


def test_nobody_fills_the_list_in_anothers_name(
    site: AttackedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "MOST_OF_ONE", 2)
    honest = of(tmp_path)
    begun_again(site, honest)
    for seed in range(5):
        site.join(of(tmp_path, train={"lr": 1.0 + seed}))
    assert site.join(honest)["error"] == WAITS
    monkeypatch.setattr(Requester, "of", lambda self, program: self.operators)
    approvals.decide(site.home, honest.fingerprint, approve=True)
    for seed in range(5):
        site.join(of(tmp_path, train={"lr": 2.0 + seed}))
    assert "too many programs wait" in site.join(of(tmp_path, train={"lr": 9.0}))["error"]


def test_a_refusal_holds_without_the_clause_too(attack: Attack, tmp_path: Path) -> None:
    draw(tmp_path / "images", noise_images(6))
    site, good = attack("two", tmp_path / "images"), of(tmp_path)
    (site.home / "identity.toml").touch()
    assert "declared" in site.join(good)
    approvals.decide(site.home, good.fingerprint, approve=False)
    assert "has refused this program" in site.train(known(good).initial)[0]["error"]
    assert "has refused this program" in site.join(good, "run2")["error"]


def test_a_flood_of_programs_neither_fills_the_disk_nor_crowds_out_another_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "MOST_OF_ONE", 3)
    monkeypatch.setattr(approvals, "MOST", 5)
    home, seeds = make_site(tmp_path / "lyon"), itertools.count(1)

    def flood(operator: str) -> list[str]:
        return [ask(home, some_program(seed=next(seeds)), (operator,)) for _ in range(5)]

    first = some_program()
    ask(home, first, ("mallory",))
    told = flood("mallory")
    assert ["too many programs wait" in text for text in told] == [False, False, True, True, True]
    assert WAITS in ask(home, first, ("mallory",)), "what is on the list stays there"
    assert WAITS in ask(home, some_program(seed=99), ("alice",))
    flood("eve")
    assert len(list((home / "programs").glob("*.json"))) == 5
    # Approved by its fingerprint, a program runs however long the list is.
    late = some_program(seed=1000)
    assert "too many programs wait" in ask(home, late, ("alice",))
    approvals.decide(home, late.fingerprint, approve=True)
    assert ask(home, late, ("alice",)) == ""
    monkeypatch.setattr(approvals, "_make_room", lambda *_: None)
    flood("mallory")
    assert len(list((home / "programs").glob("*.json"))) == 10, "without a limit it grows"


def test_names_are_shortened_and_visible_and_what_is_too_long_to_read_is_refused(
    tmp_path: Path,
) -> None:
    home = make_site(tmp_path / "lyon")
    name = "\x1b[2J<script>\u202egnp.\n" + "x" * 10_000
    ask(home, some_program(name))
    (one,) = approvals.waiting(home, Ledger(home))
    assert len(one.name) <= 200
    assert is_printable(one.name)
    assert "xxxx" not in one.settings, "the name is no setting"
    classes = [f"class {number:05d}" for number in range(9000)]
    told = ask(home, some_program(data={"name": "folder", "path": "x", "classes": classes}))
    assert "settings of this program have" in told
    assert len(approvals.waiting(home, Ledger(home))) == 1
