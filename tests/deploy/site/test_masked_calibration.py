"""Calibration and sets under secure aggregation: the masked sums of the sites are those of a
simulation without masks, bit for bit, and nothing of a single site is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from masked_counts import CLASSES, MASKED, TESTS, Sites, draw, fails_at, program, vector_of
from site_services import FaultyLink, LocalLink
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.deploy.site.trainer_process import SiteTrainer
from fedsight.engines.remote.site_lists import OFF_LIST
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.masked import trusted_masked
from fedsight.evaluation.trust.measure import NOISED, Trusted, trusted
from fedsight.evaluation.trust.remote import ALL_MADE_UP, NO_SITE
from fedsight.governance.ledger import Ledger
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.shares import SHARE
from fedsight.program.federation import federate
from fedsight.program.program import Program, Speed

PARTS = ("calibration", "sets", "ood")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("masked"))


@pytest.fixture
def sites(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(images, tmp_path / "sites", monkeypatch)
    yield made
    made.close()


def final(of: Program, vector: Tensor, tmp_path: Path) -> Final:
    return Final(federate(of), Speed(device="cpu"), vector, MemoryStore(tmp_path / "memory"))


def alike(masked: Trusted, plain: Trusted) -> None:
    """The same to the last bit, but that no site is told of."""
    facts = dict(plain.facts)
    facts["sets"] = {**facts["sets"], "sites": {}}
    assert masked.facts == facts
    for part in PARTS:
        mine, theirs = dict(masked.summary[part]), dict(plain.summary[part])
        assert mine.pop("sums", "masked") == "masked"
        assert mine.pop("by_site", {}) == {}
        theirs.pop("by_site", None)
        assert mine == theirs


@pytest.mark.parametrize("trust", [{}, {"sets": "aps", "guarantee": "class"}])
def test_masked_sums_are_those_of_a_simulation_without_masks(
    sites: Sites, images: Path, tmp_path: Path, trust: dict[str, Any]
) -> None:
    of = program(images, trust=trust)
    federation, engine = sites.join(of, "same1")
    vector = vector_of(federation)
    bare = program(images, {"name": "none"}, trust=trust)
    plain = trusted(final(bare, vector, tmp_path), True)
    assert plain.facts["scaling"]["temperature"] != 1
    alike(sites.measured(federation, engine, vector), plain)
    alike(trusted_masked(final(of, vector, tmp_path)), plain)
    for site in TESTS:
        entries = [one for one in Ledger(sites.root / site).entries() if one.run == "same1"]
        assert [one.kind for one in entries] == [
            *("declaration", "released", "losses", "released"),
            *("test sum", "scores", "released"),  # both sums are over the same list
        ]
        assert {one.protections for one in entries if one.kind == "losses"} == {
            ("secure_aggregation",)
        }


def test_a_whole_run_keeps_it_and_its_report_says_how_sums_travelled(
    sites: Sites, images: Path, tmp_path: Path
) -> None:
    of = program(images, rounds={"rounds": 1})
    summary, page = sites.run(of, "whole1", tmp_path / "run")
    assert summary["sets"]["sums"] == "masked"
    assert summary["sets"]["coverage"] > 0.4
    assert (tmp_path / "run" / "trust.json").is_file()
    assert "sums that the sites sent masked" in page
    assert "Trust by site" not in page


def test_what_leaves_a_site_is_masked(sites: Sites, images: Path) -> None:
    """And so the same sums never leave as the same bytes."""
    sent: dict[str, list[bytes]] = {"one": [], "two": []}
    for run, found in sent.items():

        def keep(
            kind: str, header: dict[str, Any], text: str, data: bytes, found: list[bytes] = found
        ) -> tuple[Any, Any]:
            if kind == "fetch":
                found.append(data)
            return text, data

        link = FaultyLink(LocalLink(sites.places.seats), "south", keep)
        federation, engine = sites.join(program(images), f"bytes{run}", link=link)
        assert sites.measured(federation, engine, vector_of(federation)).facts
    one, two = (b"".join(found) for found in sent.values())
    assert len(one) == len(two) > 10_000
    assert sum(a == b for a, b in zip(one, two, strict=True)) / len(one) < 0.02


def test_who_would_not_answer_is_left_out_before_there_are_keys(sites: Sites, images: Path) -> None:
    for owner in ({"figures": "none"}, {"test_images": 11}, {"evaluations": 1}):
        sites.owner("west", **owner)  # a quarter of its 42 test images is 10
        clause = next(iter(owner))
        federation, engine = sites.join(program(images), f"three{clause[0]}")
        found = sites.measured(federation, engine, vector_of(federation)).summary["sets"]
        assert found["coverage"] > 0.5
        assert {site: why.split(":")[0] for site, why in found["without"].items()} == {
            "west": f"contract.{clause}"
        }
        assert "missing" not in found


def test_masks_alone_let_sums_leave_that_may_not_leave_without(sites: Sites, images: Path) -> None:
    for site in TESTS:
        sites.owner(site, figures="masked", require=["secure_aggregation"])
    of = program(images)
    federation, engine = sites.join(of, "only1")
    vector = vector_of(federation)
    assert "only inside a masked sum" in engine.withheld["south"]
    assert federation.views == ()
    assert "keys" in sites.ask("south", vector)["error"]
    found = sites.measured(federation, engine, vector)
    assert found.summary["sets"]["coverage"] > 0.5
    assert found.summary["sets"]["sums"] == "masked"
    for secure, reason in (
        ({"name": "none"}, "the program has none"),
        ({**MASKED, "split_view": False}, "trusts the coordinator"),
    ):
        for site in TESTS:
            sites.owner(site, figures="masked")
        federation, engine = sites.join(program(images, secure), f"only{reason[-4:]}")
        assert reason in sites.ask("south", vector)["withheld"]
        told = sites.measured(federation, engine, vector).summary["sets"]
        assert "only inside a masked sum" in told["reason"]


def test_a_site_that_goes_away_is_a_drop_out_and_the_others_are_summed(
    sites: Sites, images: Path
) -> None:
    link = LocalLink(sites.places.seats)

    def refuse(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        asked = kind == "calibrate" and "integers" in header
        return ('{"error": "its disk is full"}' if asked else text), data

    federation, engine = sites.join(program(images), "drop1", link=FaultyLink(link, "west", refuse))
    found = sites.measured(federation, engine, vector_of(federation)).summary["sets"]
    assert found["without"] == {"west": "site 'west': its disk is full"}
    known = sum(count for site, count in TESTS.items() if site != "west") * len(CLASSES)
    assert found["images"] + found["tested"] < known


def test_one_drop_out_does_not_end_masked_sums_over_one_list(sites: Sites, images: Path) -> None:
    """The list without the site that was lost is the one that the others help with from then on."""
    for site in TESTS:
        sites.owner(site, figures="masked", require=["secure_aggregation"])
    link = LocalLink(sites.places.seats)

    def refuse(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        asked = kind == "calibrate" and "integers" in header and header["temperature"] is None
        return ('{"error": "its disk is full"}' if asked else text), data

    of = program(images)
    federation, engine = sites.join(of, "lost1", link=FaultyLink(link, "west", refuse))
    vector = vector_of(federation)
    found = sites.measured(federation, engine, vector).summary["sets"]
    assert found["without"] == {"west": "site 'west': its disk is full"}, "also of the second sum"
    known = found["coverage"]
    for run, seed in (("lost2", 0), ("lost3", 7)):
        federation, engine = sites.join(replace(of, seed=seed), run)
        found = sites.measured(federation, engine, vector).summary["sets"]
        assert found["without"] == {"west": OFF_LIST}
        assert found["coverage"] == known


def test_a_site_whose_shares_contradict_the_others_is_told(sites: Sites, images: Path) -> None:
    """It is in the sum all the same, so nothing else would say it."""

    def lie(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind != "unmask":
            return text, data
        found = bytearray(data)
        found[m.MARK + m.DIGEST + m.NUMBER + m.KIND + SHARE - 1] ^= 1  # about the first site
        return text, bytes(found)

    link = FaultyLink(LocalLink(sites.places.seats), "east", lie)
    federation, engine = sites.join(program(images), "doubt1", link=link)
    found = sites.measured(federation, engine, vector_of(federation))
    told = found.doubting(engine.site_sums.doubts).summary["sets"]
    assert "east" in told["doubts"]
    assert "without" not in told


def test_repeated_attempts_count_as_one_set_of_figures(sites: Sites, images: Path) -> None:
    """Other keys make other bytes of the same sums; other sums are refused."""
    for site in TESTS:
        sites.owner(site, evaluations=3)
    of = program(images)
    for _ in range(2):
        federation, engine = sites.join(of, "again1")
        vector = vector_of(federation)
        found = sites.measured(federation, engine, vector)
        assert found.facts
    ledger = Ledger(sites.root / "south")
    assert ledger.evaluations("images") == 2
    other = sites.measured(federation, engine, vector + 1).summary["sets"]["reason"]
    assert "another model of this run" in other


def test_by_site_there_is_no_guarantee(sites: Sites, images: Path) -> None:
    federation, engine = sites.join(program(images, trust={"guarantee": "site"}), "site1")
    found = sites.measured(federation, engine, vector_of(federation))
    assert found.summary["sets"]["reason"] == NO_SITE
    assert found.summary["calibration"]["temperature"] > 0


def test_noise_beside_masks_still_leaves_nothing(sites: Sites, images: Path) -> None:
    privacy = {"name": "distributed", "noise_multiplier": 1.0}
    of = program(images, privacy=privacy, rounds={"weighting": "uniform"})
    federation, engine = sites.join(of, "noise1")
    vector = vector_of(federation)
    assert sites.measured(federation, engine, vector).summary["sets"]["reason"] == NOISED
    assert NOISED in sites.ask("south", vector)["withheld"]


def test_a_sum_that_no_images_have_is_left_out_in_nobodys_name(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of masked sums nobody can tell who made them up."""
    honest = SiteTrainer.calibrate

    def lying(trainer: SiteTrainer, step: Any) -> Any:
        found = honest(trainer, step)
        return found + 1 if trainer.name == "north" and step.temperature is not None else found

    monkeypatch.setattr(SiteTrainer, "calibrate", lying)
    federation, engine = sites.join(program(images), "lie1")
    found = sites.measured(federation, engine, vector_of(federation))
    assert found.summary["sets"]["reason"] == ALL_MADE_UP
    assert not found.facts


def test_zeros_of_a_site_that_fails_are_counted_as_missing(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not show at the site; that the sum lacks images is said."""
    for site in TESTS:
        sites.owner(site, figures="masked", require=["secure_aggregation"])
    fails_at(monkeypatch, "north", "calibrate")
    federation, engine = sites.join(program(images), "zeros1")
    found = sites.measured(federation, engine, vector_of(federation)).summary["sets"]
    assert found["missing"] == TESTS["north"] * len(CLASSES)
    assert [line for line in sites.places.log("north") if line["event"] == "failed"]
