"""Figures of a deployed site: whole, once a round, under its owner's rules; runs without any."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import site_services
import torch
from site_services import LocalLink, Places
from torch import Tensor

from fedsight.cli.screen import show_summary
from fedsight.coordinator import loop
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import SiteError
from fedsight.core.files import write_atomically
from fedsight.deploy.declaration import gather, withheld
from fedsight.deploy.server.joining import propose
from fedsight.engines.remote import messages
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.evaluation.conclusion import Conclusion
from fedsight.evaluation.description import describe
from fedsight.governance.ledger import Ledger
from fedsight.privacy import noised_sums
from fedsight.privacy.accounting import spent
from fedsight.privacy.event import gaussian
from fedsight.program.federation import Federation
from fedsight.program.program import Program, Speed
from fedsight.report.page import build
from fedsight.runs import lifecycle
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification

MARKS = itertools.count(1000)  # of vectors and questions: each gets its own
Owner = Callable[..., None]


@pytest.fixture
def owner(places: Places, site_images: Path) -> Iterator[Owner]:
    """Writes a contract for a site; the settings are restored after the test."""
    before: dict[str, str] = {}

    def write(site: str, **contract: Any) -> None:
        before.setdefault(site, (places.root / site / "owner.toml").read_text())
        data = {"name": "folder", "path": str(site_images / site)}
        places.write_owner(site, {"data": data, "contract": contract})

    yield write
    for site, text in before.items():
        write_atomically(places.root / site / "owner.toml", text.encode())


def joined(places: Places, program: Program, run: str) -> tuple[Federation, RemoteEngine]:
    """The coordinator's federation and engine, as a deployed job makes them."""
    link = places.sit()
    found, absent, _, _ = propose(program, run, link, {})
    assert absent == {}
    federation = gather(program, found)
    noised = [site for site, declared in found.items() if declared.figures == "noised"]
    record = RunRecord({}, {}, lambda: 0, id=run, withheld=withheld(found), noised=noised)
    return federation, RemoteEngine(federation, link, record)


def ask(link: LocalLink, site: str, round: int, vector: Tensor) -> dict[str, Any]:
    """A question about figures as any coordinator could put it; returns the answer's header."""
    data = bytes(messages.pack([vector]))
    mark = next(MARKS)
    piece = {"name": "vector", "mark": mark, "start": 0, "total": len(data)}
    link.ask(site, "piece", piece, data, 9)
    header = {"round": round, "attempt": mark, "vector": mark, "accepted": 0, "seconds": 30}
    return dict(json.loads(link.ask(site, "measure", header, b"", 9)[0]))


def start(federation: Federation) -> Tensor:
    return federation.initial[federation.layout.travelling]


def reasons(engine: RemoteEngine) -> dict[str, str]:
    return {site: why.split(":")[0] for site, why in engine.withheld.items()}


def test_a_site_that_releases_no_figures_is_left_out_and_says_why(
    places: Places, site_images: Path, owner: Owner
) -> None:
    owner("south", figures="none")
    owner("west", test_images=4)  # it has three
    federation, engine = joined(places, site_services.program(site_images), "few1")
    assert [federation.name(view.site or 0) for view in federation.views] == ["north"]
    (sums,) = engine.measure(start(federation), 0)
    assert sums["confusion"].count == 5
    assert reasons(engine) == {"south": "contract.figures", "west": "contract.test_images"}


def test_a_site_that_declared_no_figures_refuses_them_when_it_is_asked_all_the_same(
    places: Places, site_images: Path, owner: Owner
) -> None:
    owner("south", require=["secure_aggregation"])
    program = site_services.program(site_images, secure={"name": "secagg"})
    federation, _ = joined(places, program, "asked1")
    answer = ask(LocalLink(places.seats), "south", 1, start(federation))
    assert "metrics" not in answer
    assert answer["withheld"] == (
        "contract.figures: sums over the test images may not leave the site, because epsilon or "
        "require is set"
    )
    entries = Ledger(places.root / "south").entries()
    assert not [one for one in entries if (one.kind, one.run) == ("figures", "asked1")]


def test_a_run_without_any_figures_is_trained_and_has_null_figures(
    places: Places,
    site_images: Path,
    owner: Owner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for site in places.names:
        owner(site, figures="none")
    program = site_services.program(site_images)
    federation, engine = joined(places, program, "blind1")
    assert federation.views == ()
    session, store = Session(federation), RunStore(tmp_path / "run")
    store.create(program, Speed(), describe(session, "run"))
    run = Conclusion(
        *(session, Speed(), store, "run", []), pictures=False, withheld=engine.withheld
    )
    summary = lifecycle.go(run, engine, None)
    assert [summary[key] for key in ("score", "loss", "worst_site")] == [None, None, None]
    assert [line["score"] for line in store.history()] == [None, None]
    assert set(store.read_json("evaluation.json")["withheld"]) == set(places.names)
    page = build([store.folder]).read_text()
    assert "3 sites released no figures" in page
    assert "contract.figures" in page
    show_summary(summary, str(store.folder))
    assert "no figures were released" in capsys.readouterr().out


def test_a_round_is_answered_for_one_model_and_a_repeated_question_by_the_same_bytes(
    places: Places, site_images: Path
) -> None:
    program = site_services.program(site_images)
    federation, _ = joined(places, program, "once1")
    link, vector = LocalLink(places.seats), start(federation)
    first = ask(link, "south", 1, vector)
    other = ask(link, "south", 1, vector + 1)
    assert other["withheld"] == "figures of another model of round 1 have left already"
    assert ask(link, "south", 1, vector)["metrics"] == first["metrics"]
    joined(places, program, "once1")  # another job of the same run
    again = ask(LocalLink(places.seats), "south", 1, vector)
    assert again["metrics"] == first["metrics"]
    assert "withheld" in ask(LocalLink(places.seats), "south", 1, vector + 1)
    recorded = [one for one in Ledger(places.root / "south").entries() if one.run == "once1"]
    assert [one.round for one in recorded if one.kind == "figures"] == [1]


def test_rounds_that_the_program_does_not_have_are_not_measured(
    places: Places, site_images: Path
) -> None:
    federation, _ = joined(places, site_services.program(site_images), "rounds1")
    answer = ask(LocalLink(places.seats), "south", 3, start(federation))
    assert answer["withheld"] == "the program has 2 rounds; there is no round 3"


def test_the_owners_number_of_sets_of_figures_holds_over_all_runs(
    places: Places, site_images: Path, owner: Owner
) -> None:
    owner("south", evaluations=3, data_set="counted")
    program = site_services.program(site_images)
    for run, rounds in (("count1", [0, 1]), ("count2", [0, 1])):
        federation, _ = joined(places, program, run)
        vector = start(federation)
        answers = [ask(LocalLink(places.seats), "south", round, vector) for round in rounds]
    assert "metrics" in answers[0]
    assert answers[1]["withheld"] == (
        "contract.evaluations: 3 sets of figures have left, and no more may"
    )
    _, engine = joined(places, program, "count3")
    assert reasons(engine) == {"south": "contract.evaluations"}


def test_sums_that_are_not_finite_are_an_answer_that_is_counted(
    places: Places, site_images: Path
) -> None:
    federation, engine = joined(places, site_services.program(site_images), "broken1")
    vector = torch.full_like(start(federation), float("nan"))
    sums = engine.measure(vector, 1)
    assert sums == [{}, {}, {}]
    assert set(engine.withheld) == set(places.names)
    entries = Ledger(places.root / "south").entries()
    assert [one.round for one in entries if (one.kind, one.run) == ("figures", "broken1")] == [1]
    joined(places, site_services.program(site_images), "broken1")
    other = ask(LocalLink(places.seats), "south", 1, start(federation))
    assert other["withheld"] == "figures of another model of round 1 have left already"


def test_nobody_to_ask_is_an_error_unless_figures_are_withheld(
    places: Places, site_images: Path
) -> None:
    federation, _ = joined(places, site_services.program(site_images), "nobody1")
    alone = RemoteEngine(federation, LocalLink({}), RunRecord({}, {}, lambda: 0))
    with pytest.raises(SiteError, match="no site is left to measure the model after round 1"):
        alone.measure(start(federation), 1)


def test_noised_figures_are_charged_and_stop_when_epsilon_is_spent(
    places: Places, site_images: Path, owner: Owner
) -> None:
    pytest.importorskip("dp_accounting")
    update, figures = gaussian(8.0, "replace_one"), noised_sums.event(5.0)
    limit = spent([(update, 1), (figures, 1)], 1e-5) + 0.01
    clauses = {"epsilon": limit, "figures": "noised", "data_set": "noised figures"}
    owner("south", **clauses)
    program = site_services.program(
        site_images,
        privacy={"name": "local", "noise_multiplier": 8.0},
        rounds={"weighting": "uniform", "quorum": 2},
    )
    federation, engine = joined(places, program, "noise1")
    diary = site_services.federations.Diary()
    loop.run(Session(federation), engine, site_services.federations.overall(federation), [diary])
    entries = Ledger(places.root / "south").entries()
    found = [one for one in entries if one.run == "noise1" and one.kind != "declaration"]
    asked = [one for one in found if one.kind != "released"]
    assert [(one.kind, one.round) for one in asked] == [("update", 1), ("figures", 1)]
    assert asked[1].event == figures.table()
    assert asked[1].enforced
    assert "south" not in diary.lines[1]["sites"]
    assert "contract.epsilon" in engine.withheld["south"]


def test_noise_is_fresh_and_a_repeated_question_gets_the_same_bytes(
    places: Places, site_images: Path, owner: Owner
) -> None:
    owner("south", figures="noised")
    program, answers = site_services.program(site_images), []
    for run in ("fresh1", "fresh2"):
        federation, _ = joined(places, program, run)
        answers.append(ask(LocalLink(places.seats), "south", 1, start(federation))["metrics"])
    joined(places, program, "fresh2")
    again = ask(LocalLink(places.seats), "south", 1, start(federation))["metrics"]
    assert answers[0] != answers[1]
    assert again == answers[1]
    assert {count for _, count in again.values()} == {4}


def test_a_run_whose_figures_have_noise_says_how_much(
    places: Places,
    site_images: Path,
    owner: Owner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner("south", figures="noised", figures_noise=0.2)
    program = site_services.program(site_images)
    federation, engine = joined(places, program, "margin1")
    session, store = Session(federation), RunStore(tmp_path / "run")
    store.create(program, Speed(), describe(session, "run"))
    run = Conclusion(
        *(session, Speed(), store, "run", []),
        pictures=False,
        withheld=engine.withheld,
        noised=["south"],
    )
    summary = lifecycle.go(run, engine, None)
    assert 0.01 < summary["score_error"] < 0.2
    assert set(summary["site_errors"]) == {"south"}
    lines = store.history()
    assert all(line["score_error"] > 0.01 for line in lines)
    assert {round(line["score"], 2) for line in lines} == {line["score"] for line in lines}
    page = build([store.folder]).read_text()
    assert "1 site added noise to its figures (south), so these are estimates" in page
    assert "± " in page.replace("\u00a0", " ")
    show_summary(summary, str(store.folder))
    assert "±" in capsys.readouterr().out


def test_figures_that_cannot_be_noised_are_refused_with_the_clause(
    places: Places, site_images: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner("south", figures="noised")
    monkeypatch.setattr(Classification, "bounds", Task.bounds)
    _, engine = joined(places, site_services.program(site_images), "unbounded1")
    assert engine.withheld["south"].startswith(
        "contract.figures: the task classify or one of its metrics does not bound"
    )
