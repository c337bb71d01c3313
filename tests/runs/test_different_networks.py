"""Whole runs whose sites have different networks: what each gets, and from where it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import same, write_config
from federations import Stop
from safetensors.torch import load_file

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import Interrupted, StoreError
from fedsight.evaluation.conclusion import Command
from fedsight.inference import saved
from fedsight.program.config import load
from fedsight.program.program import Speed
from fedsight.runs import lifecycle

NARROW: dict[str, Any] = {
    "model": {"width": 8, "groups": [{"sites": ["site-01"], "width": 4}]},
    "rounds": {"rounds": 3, "validation": 0.3},
}
PROTOTYPES: dict[str, Any] = {
    "model": {
        "bottleneck": 6,
        "groups": [
            {"sites": ["site-01"], "name": "mlp", "bottleneck": 6},
            {"sites": ["site-02"], "blocks": 2},
        ],
    },
    "algorithm": {"name": "fedproto"},
    "rounds": {"rounds": 3, "validation": 0.3},
}
SCORES: dict[str, Any] = {
    "model": {
        "groups": [{"sites": ["site-01"], "name": "mlp"}, {"sites": ["site-02"], "blocks": 2}]
    },
    "algorithm": {"name": "fedmd"},
    "public": {"images": 40},
    "rounds": {"rounds": 3, "validation": 0.3},
}
KINDS = {"narrow": NARROW, "prototypes": PROTOTYPES, "scores": SCORES}
SITES = ("site-00", "site-01", "site-02")


SPEED = Speed(workers=1, device="cpu")


@pytest.fixture(scope="module", params=list(KINDS))
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program's file, beside its images."""
    return write_config(tmp_path_factory.mktemp("networks"), **KINDS[request.param])


@pytest.fixture(scope="module")
def whole(config: Path) -> RunStore:
    """A finished comparison."""
    return run(config, config.parent / "whole", "compare")


def run(config: Path, folder: Path, command: Command = "run", calls: Any = ()) -> RunStore:
    store = RunStore(folder)
    lifecycle.start(lifecycle.Start(load(config)[0], SPEED, store, command), list(calls))
    return store


def test_each_site_gets_a_model_of_its_own_network(whole: RunStore) -> None:
    program, _ = whole.program()
    summary = whole.read_json("summary.json")
    assert set(summary["delivered_by_site"]) == set(SITES)
    assert set(summary["alone_by_site"]) == set(SITES)
    for site in SITES:
        found = saved.load(whole.folder, site)
        model = program.model
        for at, group in enumerate(program.model.groups):
            model = program.model.grouped(at) if site in group.sites else model
        network = model.build(1, found.preprocess.height, found.preprocess.width, 4, 0)
        given, made = found.module.state_dict(), network.module.state_dict()
        assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in made.items()}
        kept = load_file(whole.delivered / f"{site}.safetensors")
        assert all(bool((given[name] == kept[name]).all()) for name in given)


def test_without_a_comparison_a_site_has_what_it_trained(config: Path, tmp_path: Path) -> None:
    folder = run(config, tmp_path / "run").folder
    shared, common = saved.load(folder, "site-01"), load_file(folder / "model.safetensors")
    given = shared.module.state_dict()
    if common.keys() & {"prototypes", "consensus"}:
        assert "hidden0.weight" in given
        with pytest.raises(StoreError, match="its own part"):
            saved.load(folder)
    else:
        for name, value in given.items():
            block = tuple(slice(0, side) for side in value.shape)
            assert bool((common[name][block] == value).all())
    with pytest.raises(StoreError, match="no model for site"):
        saved.load(folder, "site-99")


def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(
    config: Path, whole: RunStore, tmp_path: Path
) -> None:
    store = RunStore(tmp_path / "run")
    with pytest.raises(Interrupted):
        run(config, store.folder, "compare", [Stop(2)])
    lifecycle.resume(store, 1, [])
    same(store.folder, whole.folder)
    one, other = (load_file(each.folder / "model.safetensors") for each in (store, whole))
    assert all(bool((one[name] == other[name]).all()) for name in one)
    for site in SITES:
        one, other = (load_file(each.delivered / f"{site}.safetensors") for each in (store, whole))
        assert all(bool((one[name] == other[name]).all()) for name in one)


def test_run_json_says_which_network_each_site_has(whole: RunStore) -> None:
    program, _ = whole.program()
    networks = [site["network"] for site in whole.read_json("run.json")["sites"]]
    assert len({one["parameters"] for one in networks}) == len(program.model.groups) + 1
    assert networks[0]["name"] == "small_cnn"
