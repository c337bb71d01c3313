"""Calibration and sets of the common model where images stay at sites: the sums are those of a
simulation, pass the door as two sets of figures, and are left out where they would go around it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attacked_site
import pytest
import site_services
import torch
from masked_counts import draw
from site_services import FaultyLink, LocalLink, Places
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.deploy.declaration import gather, grouped_tests, masked_tests, withheld
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.calibration import UNNOISED
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.evaluation.conclusion import Conclusion
from fedsight.evaluation.description import describe
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.fit import FILE, FitFile
from fedsight.evaluation.trust.measure import Trusted, trusted
from fedsight.evaluation.trust.remote import MADE_UP, ONE_HEAT, OWN, trusted_remote
from fedsight.evaluation.trust.sums import CountSums, FitSums, form, read
from fedsight.governance.ledger import Ledger
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed
from fedsight.report.page import build
from fedsight.runs import lifecycle

CLASSES = ("ant", "bee", "cat")
TESTS = {"north": 40, "south": 30, "west": 24}  # of each class
MARKS = itertools.count(5000)
ENERGY = {"unlike": "energy", "coverage": 0.8, "false_alarm": 0.1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("many"), TESTS, trained=5)


@pytest.fixture
def in_processes(images: Path, tmp_path: Path) -> Iterator[Places]:
    """Sites whose trainers are processes."""
    data = {name: {"name": "folder", "path": str(images / name)} for name in TESTS}
    (tmp_path / "sites").mkdir()
    made = Places(tmp_path / "sites", data)
    yield made
    made.close()


@pytest.fixture
def sites(in_processes: Places, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Sites whose trainers are in this process: starting three takes longer than what is asked."""
    attacked_site.install(monkeypatch)
    return in_processes


def owner(sites: Places, images: Path, site: str, **contract: Any) -> None:
    data = {"name": "folder", "path": str(images / site)}
    sites.write_owner(site, {"data": data, "contract": contract})


def program(images: Path, **sections: Any) -> Program:
    sections = {"trust": ENERGY, **sections}
    return site_services.program(images, **sections)


def joined(
    sites: Places, of: Program, run: str, link: Link | None = None
) -> tuple[Federation, RemoteEngine]:
    link = link or sites.sit()
    found, absent, _, _ = propose(of, run, link, {})
    assert absent == {}
    federation = gather(of, found)
    noised = [site for site, declared in found.items() if declared.figures == "noised"]
    told = {"withheld": withheld(found), "noised": noised, "tests": masked_tests(found)}
    record = RunRecord({}, {}, lambda: 0, id=run, groups=grouped_tests(found), **told)
    return federation, RemoteEngine(federation, link, record)


def vector_of(federation: Federation) -> Tensor:
    """A model that has learnt nothing, and is not the same for all classes."""
    start = federation.initial[federation.layout.travelling].clone()
    return start + 0.3 * torch.randn(len(start), generator=torch.Generator().manual_seed(1))


def asked(
    sites: Places,
    federation: Federation,
    engine: RemoteEngine,
    vector: Tensor,
    folder: str | None = None,
) -> Trusted:
    """What becomes known of a model after round 2; `folder`: that of an earlier job of the run."""
    model, place = (vector, 2), sites.root.parent / (folder or f"run-{next(MARKS)}")
    place.mkdir(exist_ok=True)
    ask = partial(engine.add_up, model)
    file = FitFile(RunStore(place), model)
    return trusted_remote(federation, ask, file, engine.site_sums.groups)


def simulated(of: Program, vector: Tensor, tmp_path: Path) -> Any:
    federation = federate(of)
    final = Final(federation, Speed(device="cpu"), vector, MemoryStore(tmp_path / "memory"))
    return trusted(final, True)


@pytest.mark.parametrize(
    "trust",
    [
        {},
        {"sets": "aps", "guarantee": "class"},
        {"sets": "raps", "guarantee": "site"},
    ],
)
def test_sites_add_up_what_a_simulation_knows(
    sites: Places, images: Path, tmp_path: Path, trust: dict[str, Any]
) -> None:
    of = program(images, trust={**ENERGY, **trust})
    federation, engine = joined(sites, of, "same1")
    vector = vector_of(federation)
    found = asked(sites, federation, engine, vector)
    known = simulated(of, vector, tmp_path)
    assert found.facts == known.facts  # bit for bit: temperature, histograms, threshold, bins
    assert found.facts["scaling"]["temperature"] != 1
    for part in ("calibration", "sets", "ood"):
        mine, theirs = dict(found.summary[part]), dict(known.summary[part])
        for name, one in mine.pop("by_site", {}).items():
            assert one == pytest.approx(theirs["by_site"][name], nan_ok=True)
        theirs.pop("by_site", None)
        assert mine.pop("sums") == "exact"
        if part == "sets" and trust.get("guarantee") == "site":  # means over the sites
            for key in ("coverage", "size"):
                assert mine.pop(key) == pytest.approx(theirs.pop(key))
        assert mine == theirs
    assert set(found.summary["sets"]["by_site"]) == set(TESTS)


def test_a_whole_run_keeps_it_and_its_report_shows_it(
    in_processes: Places, images: Path, tmp_path: Path
) -> None:
    of, sites = program(images), in_processes
    federation, engine = joined(sites, of, "whole1")
    session, store = Session(federation), RunStore(tmp_path / "run")
    store.create(of, Speed(), describe(session, "run"))
    run = Conclusion(*(session, Speed(), store, "run", []), pictures=False, sums=engine)
    summary = lifecycle.go(run, engine, None)
    assert summary["sets"]["coverage"] >= 0.5
    assert summary["calibration"]["temperature"] > 0
    assert summary["ood"]["threshold"] > 0
    assert (store.folder / "trust.json").is_file()
    page = build([store.folder]).read_text()
    assert "Trust by site" in page
    for site in TESTS:
        entries = [one for one in Ledger(sites.root / site).entries() if one.run == "whole1"]
        assert [one.kind for one in entries if one.kind in ("losses", "scores")] == [
            "losses",
            "scores",
        ]


def test_the_owner_decides_and_the_others_make_theirs(
    sites: Places, images: Path, tmp_path: Path
) -> None:
    owner(sites, images, "south", figures="none")
    owner(sites, images, "west", test_images=20)  # a quarter of its 72 is 18
    federation, engine = joined(sites, program(images), "few1")
    found = asked(sites, federation, engine, vector_of(federation))
    without = found.summary["sets"]["without"]
    assert {site: why.split(":")[0] for site, why in without.items()} == {
        "west": "contract.test_images"
    }
    assert set(found.summary["sets"]["by_site"]) == {"north"}
    for site in TESTS:
        owner(sites, images, site, figures="noised")
    federation, engine = joined(sites, program(images), "few2")
    found = asked(sites, federation, engine, vector_of(federation))
    assert "contract.figures" in found.summary["sets"]["reason"]


def ask(link: LocalLink, site: str, vector: Tensor, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """A question as any coordinator could put it; the answer's header, and its numbers."""
    data, mark = bytes(messages.pack([vector])), next(MARKS)
    piece = {"name": "vector", "mark": mark, "start": 0, "total": len(data)}
    link.ask(site, "piece", piece, data, 9)
    header = {"round": 2, "attempt": mark, "vector": mark, "temperature": None, "seconds": 30}
    told = dict(json.loads(link.ask(site, "calibrate", {**header, **fields}, b"", 9)[0]))
    body = b""
    while len(body) < told.get("bytes", 0):
        where = {"ticket": told["ticket"], "start": len(body), "stop": told["bytes"]}
        body += bytes(link.ask(site, "fetch", where, b"", 9)[1])
    return told, body


def test_a_run_has_one_model_and_one_temperature(sites: Places, images: Path) -> None:
    federation, _ = joined(sites, program(images), "once1")
    link, vector = LocalLink(sites.seats), vector_of(federation)
    first, data = ask(link, "south", vector)
    assert len(data) == first["bytes"] == 8 * form(FitSums, 3).size
    for changes in ({"vector_": vector + 1}, {"vector_": vector + 1, "round": 1}):
        given = dict(changes)
        told, _ = ask(link, "south", given.pop("vector_"), **given)
        assert "of another model of this run" in told["withheld"]
    assert ask(link, "south", vector)[1] == data
    assert "bytes" in ask(link, "south", vector, temperature=1.5)[0]
    assert "another temp" in ask(link, "south", vector, temperature=1.6)[0]["withheld"]
    other, _ = ask(link, "south", vector + 1, temperature=1.5)
    assert "of another model of this run" in other["withheld"]
    for heat in (0.0, -1.0, "1", float("inf"), True, 1e-300, 16.1):
        assert "not among those" in ask(link, "south", vector, temperature=heat)[0]["error"]
    joined(sites, program(images), "once1")  # another job of the same run
    link = LocalLink(sites.seats)
    assert "withheld" in ask(link, "south", vector + 1)[0]
    assert ask(link, "south", vector, temperature=1.5)[1]


def test_each_answer_is_one_of_the_owners_sets_of_figures(sites: Places, images: Path) -> None:
    owner(sites, images, "south", evaluations=3)
    for run, told in (("count1", [True, True]), ("count2", [True, False])):
        federation, _ = joined(sites, program(images), run)
        vector, link = vector_of(federation), LocalLink(sites.seats)
        heats = (None, 1.0)
        answers = [ask(link, "south", vector, temperature=heat)[0] for heat in heats]
        assert ["bytes" in one for one in answers] == told
    assert "contract.evaluations" in answers[1]["withheld"]


@pytest.mark.parametrize(
    ("sections", "contract", "reason"),
    [
        ({}, {"figures": "masked"}, "only inside a masked sum, and the program has none"),
        (
            {"privacy": {"name": "local", "noise_multiplier": 1.0},
             "rounds": {"weighting": "uniform"}},
            {"figures": "exact"},
            UNNOISED,
        ),
        ({"algorithm": {"name": "fedper"}}, {}, OWN),
        ({"trust": {"measured": False}}, {}, "trust.measured is false"),
        ({}, {"counts": False}, "contract.counts"),
        ({}, {"figures": "noised"}, "these sums have no noise"),
        ({}, {"test_images": 91}, "the site has 90 test images"),
    ],
)  # fmt: skip
def test_nothing_exact_goes_around_masks_noise_or_the_contract(
    sites: Places,
    images: Path,
    sections: dict[str, Any],
    contract: dict[str, Any],
    reason: str,
) -> None:
    """Also of a site that is asked although its coordinator should not."""
    for site in TESTS:
        owner(sites, images, site, **contract)
    federation, engine = joined(sites, program(images, **sections), "around1")
    vector = federation.initial[federation.layout.travelling].clone()
    told, data = ask(LocalLink(sites.seats), "south", vector)
    assert reason in told["withheld"]
    assert not data
    assert not [one for one in Ledger(sites.root / "south").entries() if one.kind == "losses"]
    found = asked(sites, federation, engine, vector)
    assert found.summary["sets"]["reason"]
    assert not found.facts


def test_a_scaling_by_class_is_not_made_and_that_is_said(sites: Places, images: Path) -> None:
    of = program(images, trust={**ENERGY, "scaling": "vector"})
    federation, engine = joined(sites, of, "heat1")
    found = asked(sites, federation, engine, vector_of(federation))
    assert found.summary["calibration"]["reason"] == ONE_HEAT
    assert found.facts["scaling"]["kind"] == "temperature"


def test_a_model_without_numbers_gets_an_answer_without_sums(sites: Places, images: Path) -> None:
    federation, engine = joined(sites, program(images), "nan1")
    vector = torch.full_like(vector_of(federation), float("nan"))
    found = asked(sites, federation, engine, vector)
    assert "not finite" in found.summary["sets"]["reason"]


@pytest.mark.parametrize("field", ["losses", "cover", "tested", "held", "reliable_tested", "brier"])
def test_sums_that_no_images_have_are_left_out_by_name(
    sites: Places, images: Path, field: str
) -> None:
    """A malicious site would otherwise shift the threshold of all."""
    kind = FitSums if field == "losses" else CountSums
    due = 8 * form(kind, 3).size

    def alter(asked: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if asked == "fetch" and len(body) == due:
            numbers = torch.frombuffer(bytearray(body), dtype=torch.int64).clone()
            view = getattr(read(kind, numbers, 3), field)
            view += 1 << 40
            return text, numbers.numpy().tobytes()
        return text, body

    link = FaultyLink(sites.sit(), "west", alter)
    federation, engine = joined(sites, program(images), "false1", link)
    engine._sizers.default_factory = lambda: replace_sizer()
    found = asked(sites, federation, engine, vector_of(federation))
    assert found.summary["sets"]["without"] == {"west": MADE_UP}
    wanted = {"north", "south"} if kind is CountSums else set(TESTS)
    assert set(found.summary["sets"]["by_site"]) == wanted


def test_another_set_of_sites_after_a_restart_does_not_change_the_temperature(
    sites: Places, images: Path
) -> None:
    """It is part of the question, and a site that has answered at one answers at no other."""
    federation, engine = joined(sites, program(images), "killed1")
    vector, path = vector_of(federation), sites.root.parent / "killed" / FILE
    asked(sites, federation, engine, vector, "killed")
    known = json.loads(path.read_text())
    hotter = known["temperature"] * 1.25  # as other sites could have made it
    for run, reason in (("killed1", "at another temperature"), ("killed2", "")):
        path.write_text(json.dumps({**known, "temperature": hotter}))
        federation, engine = joined(sites, program(images), run)
        if not reason:
            engine.absent["north"] = "site 'north' has stopped answering"
        found = asked(sites, federation, engine, vector, "killed")
        if reason:
            assert not found.facts
            assert reason in found.summary["sets"]["reason"]
        else:
            assert found.facts["scaling"]["temperature"] == hotter
            assert set(found.summary["sets"]["by_site"]) == {"south", "west"}


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0), ("temperature", 1e9), ("images", -1), ("without", [1])]
)
def test_a_broken_temperature_is_refused(
    sites: Places, images: Path, field: str, value: Any
) -> None:
    federation, engine = joined(sites, program(images), "broken1")
    vector = vector_of(federation)
    asked(sites, federation, engine, vector, "broken")
    path = sites.root.parent / "broken" / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(StoreError, match="not a temperature"):
        asked(sites, federation, engine, vector, "broken")
    other = asked(sites, federation, engine, vector + 1, "broken")  # another model: not its own
    assert other.summary["sets"]["reason"]


def replace_sizer() -> messages.Sizers:
    """Pieces that are as large as they may be."""
    made = messages.Sizers()
    made.down.size = made.up.size = messages.PIECE
    return made


def test_a_site_that_is_away_is_named(sites: Places, images: Path) -> None:
    federation, engine = joined(sites, program(images), "away1")
    engine.absent["north"] = "site 'north' has stopped answering"
    found = asked(sites, federation, engine, vector_of(federation))
    assert found.summary["ood"]["without"] == {"north": "site 'north' has stopped answering"}
