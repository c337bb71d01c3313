"""Whole comparisons: what each site gets, what the files say of it, and that it is what is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import _write_idx, write_config
from safetensors.torch import load_file

import fedsight
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.evaluation.comparison import PARTIAL, gains
from fedsight.inference import saved
from fedsight.program.config import load
from fedsight.program.federation import federate
from fedsight.program.program import Speed
from fedsight.runs.lifecycle import Start, resume, start

SPEED = Speed(workers=2, device="cpu")
SECTIONS: dict[str, Any] = {
    "split": {"name": "dirichlet", "sites": 3, "alpha": 0.5},
    "rounds": {"rounds": 3, "validation": 0.4},
}


def compared(folder: Path, **sections: Any) -> RunStore:
    """A finished comparison of three sites."""
    program, _ = load(write_config(folder, **{**SECTIONS, **sections}))
    store = RunStore(folder / "run")
    start(Start(program, SPEED, store, "compare"), [])
    return store


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Sites with held-out images."""
    return compared(tmp_path_factory.mktemp("usual"))


def own_accuracy(store: RunStore, site: str, number: int) -> float:
    """The accuracy of the model that `predict --site` uses, on the site's own label mix, computed
    from its answers alone."""
    federation = federate(store.program()[0])
    test, classes = federation.dataset.test, len(federation.dataset.classes)
    pixels = test.images.read(torch.arange(len(test)))
    answers = saved.load(store.folder, site).module(federation.dataset.preprocess.normalise(pixels))
    right = answers.argmax(1).numpy() == test.labels
    labels = federation.dataset.train.labels[federation.partition.indices(number)]
    mix = np.bincount(labels, minlength=classes) / len(labels)
    return sum(mix[k] * right[test.labels == k].mean() for k in range(classes) if mix[k])


def test_the_delivered_model_is_the_one_that_was_measured(usual: RunStore) -> None:
    told = usual.read_json("comparison.json")["delivered"]
    assert sorted(told) == ["site-00", "site-01", "site-02"]
    for number, (name, one) in enumerate(sorted(told.items())):
        assert one["held_out"] >= 20
        assert own_accuracy(usual, name, number) == pytest.approx(one["score"], abs=1e-9)
        assert one["kind"] in one["by_kind"]
        losses = {kind: found["loss"] for kind, found in one["by_kind"].items()}
        assert losses[one["kind"]] == min(losses.values())


def test_the_summary_counts_who_gains_with_the_model_that_it_gets(usual: RunStore) -> None:
    summary, comparison = usual.read_json("summary.json"), usual.read_json("comparison.json")
    better = 0
    for name, one in comparison["delivered"].items():
        gain = one["score"] - comparison["alone"][name]["own_score"]
        assert summary["gain_by_site"][name] == pytest.approx(100 * gain)
        assert summary["delivered_by_site"][name] == one["kind"]
        better += gain > 0 and one["kind"] != "alone"
    assert (summary["sites"], summary["sites_better"]) == (3, better)


def test_the_report_counts_with_the_same_models(usual: RunStore) -> None:
    from fedsight.report.read import read
    from fedsight.report.sites import site_rows, tally

    run = read(usual.folder)
    summary, found = usual.read_json("summary.json"), tally(site_rows(run))
    assert found is not None
    assert {row.name: pytest.approx(100 * (row.gain or 0)) for row in site_rows(run)} == summary[
        "gain_by_site"
    ]
    page = fedsight.load(usual.folder).report().read_text()
    assert "the model that it chose" in page


def test_the_choice_does_not_see_the_test_part(usual: RunStore, tmp_path: Path) -> None:
    # With other test labels every figure changes, and no choice and no model.
    write_config(tmp_path, **SECTIONS)
    path = tmp_path / "images" / "t10k-labels-idx1-ubyte"
    labels = np.frombuffer(path.read_bytes()[8:], np.uint8)
    _write_idx(path, (labels + 1) % 4)
    other = compared(tmp_path)
    one, two = (store.read_json("comparison.json")["delivered"] for store in (usual, other))
    for name in one:
        for key in ("kind", "settings", "held_out", "by_kind"):
            assert one[name][key] == two[name][key]
        assert one[name]["score"] != two[name]["score"]
        first, second = (
            load_file(store.delivered / f"{name}.safetensors") for store in (usual, other)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_interrupted_comparison_delivers_the_same(usual: RunStore, tmp_path: Path) -> None:
    store = compared(tmp_path)
    whole = store.read_json("comparison.json")
    partial = store.read_json(PARTIAL)
    del partial["1"]
    store.write_json(PARTIAL, partial)
    for name in ("summary.json", "comparison.json", "delivered/site-01.safetensors"):
        (store.folder / name).unlink()
    resume(store, None, [])
    assert store.read_json("comparison.json")["delivered"] == whole["delivered"]
    assert (store.delivered / "site-01.safetensors").read_bytes() == (
        usual.delivered / "site-01.safetensors"
    ).read_bytes()


def test_a_broken_partial_file_is_refused_by_name(tmp_path: Path) -> None:
    """Before memory is taken for as many images as it claims."""
    store = compared(tmp_path)
    partial = store.read_json(PARTIAL)
    partial["1"]["delivered"]["evidence"] = {"right": "AAAA", "images": 50_000_000_000_000}
    store.write_json(PARTIAL, partial)
    (store.folder / "summary.json").unlink()
    with pytest.raises(StoreError, match=r"comparison.partial.json is broken"):
        resume(store, None, [])


def test_without_held_out_images_each_site_gets_the_shared_model(tmp_path: Path) -> None:
    store = compared(tmp_path, rounds={"rounds": 1})
    comparison, summary = store.read_json("comparison.json"), store.read_json("summary.json")
    for name, one in comparison["delivered"].items():
        assert (one["kind"], one["held_out"]) == ("shared", 0)
        assert one["score"] == summary["by_site"][name]["score"]
        assert {key: one[key] for key in comparison["sites"][name]} == comparison["sites"][name]
    assert not store.delivered.exists()
    with pytest.raises(StoreError, match="share one model"):
        saved.load(store.folder, "site-00")


def test_a_site_with_too_few_held_out_images_gets_a_correction_of_half_strength(
    tmp_path: Path,
) -> None:
    split = {"name": "quantity", "sites": 3, "alpha": 0.3, "min_samples": 10}
    store = compared(tmp_path, split=split)
    told = store.read_json("comparison.json")["delivered"]
    few = [name for name, one in told.items() if not one["held_out"]]
    assert few
    assert len(few) < 3
    shared = load_file(store.folder / "model.safetensors")
    for name in few:
        assert (told[name]["kind"], told[name]["settings"]) == ("corrected", {"strength": 0.5})
        module = saved.load(store.folder, name).module
        other = [k for k, value in module.named_parameters() if not torch.equal(value, shared[k])]
        assert len(other) == 1
        assert other[0].endswith("bias")
    page = fedsight.load(store.folder).report().read_text()
    assert "too few held-out samples to choose by" in page
    with pytest.raises(StoreError, match="no model for site 'site-09'"):
        saved.load(store.folder, "site-09")


def test_a_model_of_a_sites_own_is_not_corrected_where_nothing_can_be_chosen(
    tmp_path: Path,
) -> None:
    split = {"name": "quantity", "sites": 3, "alpha": 0.3, "min_samples": 10}
    store = compared(tmp_path, split=split, algorithm={"name": "fedper"})
    told = store.read_json("comparison.json")["delivered"].values()
    assert {one["kind"] for one in told if not one["held_out"]} == {"shared"}


@pytest.mark.parametrize("algorithm", ["fedrep", "ditto"])
def test_a_sites_own_part_or_model_is_in_its_shared_model(tmp_path: Path, algorithm: str) -> None:
    store = compared(tmp_path, algorithm={"name": algorithm})
    told = store.read_json("comparison.json")["delivered"]
    assert told
    for number, name in enumerate(sorted(told)):
        reached = own_accuracy(store, name, number)
        assert reached == pytest.approx(told[name]["score"], abs=1e-9)


def test_a_run_in_place_of_another_keeps_none_of_its_models(tmp_path: Path) -> None:
    store = compared(tmp_path)
    program, _ = load(write_config(tmp_path, rounds={"rounds": 1}))
    start(Start(program, SPEED, store, "run", force=True), [])
    assert not store.delivered.exists()


def test_an_own_model_is_no_gain() -> None:
    found = gains(
        {
            "alone": {name: {"own_score": 0.5} for name in "abcd"},
            "delivered": {
                "a": {"kind": "alone", "score": 0.6, "verdict": "better"},
                "b": {"kind": "tuned", "score": 0.6, "verdict": "better"},
                "c": {"kind": "shared", "score": 0.4, "verdict": "worse"},
                "d": {"kind": "shared", "score": None, "verdict": "no difference shown"},
            },
        }
    )
    assert (found["sites"], found["sites_better"], found["sites_worse"]) == (3, 1, ["c"])
    assert json.loads(json.dumps(found["gain_by_site"])) == pytest.approx(
        {"a": 10.0, "b": 10.0, "c": -10.0, "d": None}
    )
