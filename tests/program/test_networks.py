"""Groups of sites with other networks: what `check` finds, and what it says about it."""

from __future__ import annotations

import tomllib
from typing import Any

import federations
import pytest
import tomli_w

from fedsight.core.errors import ConfigError, Problem
from fedsight.program import networks
from fedsight.program.config import parse
from fedsight.program.federation import federate

NARROW = {"sites": ["site-01"], "width": 4}


def model(*groups: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"model": {"width": 8, **settings, "groups": list(groups)}}


def refused(**sections: Any) -> list[Problem]:
    """What is found before any network is built."""
    return federations.program(**sections).check()


def opened(**sections: Any) -> tuple[Problem, ...]:
    """What is found once the data are opened and the networks built."""
    with pytest.raises(ConfigError) as caught:
        federate(federations.program(**sections))
    return caught.value.problems


def test_a_group_changes_what_it_says_and_nothing_else() -> None:
    base = federations.program(**model(NARROW, dropout=0.2)).model
    made = base.grouped(0)
    assert made.table() == {**base.table(), "width": 4, "groups": []}


def test_a_group_with_another_network_has_that_ones_defaults() -> None:
    other = {"sites": ["site-01"], "name": "mlp", "bottleneck": 8}
    base = federations.program(**model(other, seed=5, dropout=0.2)).model
    made = base.grouped(0)
    assert made.registered == "mlp"
    assert (made.bottleneck, made.seed) == (8, 5)


def test_groups_are_written_as_they_are_read() -> None:
    made = federations.program(**model(NARROW, {"sites": ["site-02"], "name": "mlp"}))
    written = tomli_w.dumps({"groups": made.table()["model"]["groups"]})
    again = federations.program(**model(*tomllib.loads(written)["groups"]))
    assert again.model == made.model
    assert again.fingerprint == made.fingerprint


def test_groups_are_part_of_the_fingerprint() -> None:
    prints = {
        federations.program(**sections).fingerprint
        for sections in (model(), model(NARROW), model({**NARROW, "sites": ["site-02"]}))
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("group", "where", "words"),
    [
        ({"sites": ["site-01"], "witdh": 4}, "model.groups.0.witdh", "no such setting"),
        ({"sites": ["site-01"], "width": 3}, "model.groups.0.width", "3 does not fit"),
        ({"sites": ["site-01"], "name": "mpl"}, "model.groups.0.name", "no model 'mpl'"),
        ({"sites": ["site-01"], "norm": "frozen"}, "model.norm", "pretrained"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    group: dict[str, Any], where: str, words: str
) -> None:
    found = refused(**model(group))
    assert any(one.where == where and words in one.cause for one in found), found
    assert all(one.cure for one in found)


def test_a_group_without_sites_is_refused() -> None:
    with pytest.raises(ConfigError, match="a group needs sites"):
        parse({"model": {"name": "small_cnn", "groups": [{"sites": [], "width": 4}]}}, base=None)


@pytest.mark.parametrize(
    ("sections", "where", "words"),
    [
        ({"algorithm": {"name": "scaffold"}}, "algorithm.name", "each value"),
        ({"algorithm": {"name": "feddyn"}}, "algorithm.name", "each value"),
        ({"algorithm": {"name": "fednova"}}, "algorithm.name", "each value"),
        ({"algorithm": {"name": "ridge"}}, "algorithm.name", "each value"),
        ({"aggregation": {"name": "median"}}, "aggregation.name", "sends zeros"),
        (
            {"rounds": {"mode": "buffered"}, "timing": {"delay_seconds": 1.0}},
            "rounds.mode",
            "late replies",
        ),
        ({"codec": {"up": {"steps": ["float16"]}}}, "codec.up.steps", "zeros"),
        ({"adapter": {"name": "lora"}}, "adapter.name", "frozen"),
        ({"train": {"only": ["head"]}}, "train.only", "frozen"),
        ({"finish": {"name": "ridge"}}, "finish", "features of one network"),
        ({"secure": {"name": "secagg"}}, "model.groups", "a single site"),
        ({"secure": {"name": "quantised"}}, "model.groups", "a single site"),
        ({"privacy": {"name": "central", "epsilon": 8.0}}, "model.groups", "no noise hides"),
        ({"privacy": {"name": "local", "epsilon": 8.0}}, "model.groups", "no noise hides"),
    ],
)
def test_what_does_not_go_with_parts_of_a_network_is_refused(
    sections: dict[str, Any], where: str, words: str
) -> None:
    found = refused(**model(NARROW), **sections)
    assert any(one.where == where and words in one.cause and one.cure for one in found), found


@pytest.mark.parametrize(
    "algorithm", ["fedavg", "fedprox", "fedavgm", "fedyogi", "fedbn", "fedrep", "ditto", "moon"]
)
def test_algorithms_that_take_each_value_by_itself_are_not(algorithm: str) -> None:
    assert refused(**model(NARROW), algorithm={"name": algorithm}) == []


def test_steps_that_protect_single_images_go_with_it() -> None:
    sections = {"privacy": {"name": "example", "epsilon": 8.0}, "rounds": {"weighting": "uniform"}}
    assert refused(**model(NARROW), **sections) == []


@pytest.mark.parametrize(
    ("groups", "where", "words"),
    [
        ([{"sites": ["site-1"], "width": 4}], "model.groups.0.sites", "no site is called 'site-1'"),
        ([{"sites": ["ward*"], "width": 4}], "model.groups.0.sites", "no site is called 'ward*'"),
        ([NARROW, {"sites": ["site-0?"]}], "model.groups.1.sites", "'site-01' is in this group"),
        (
            [{"sites": ["site-01"], "width": 12}],
            "model.groups.0",
            "is not a part of the network in",
        ),
        ([{"sites": ["site-01"], "name": "mlp"}], "model.groups.0", "is not a part of"),
        (
            [{"sites": ["site-01"], "blocks": 3}],
            "model.groups.0",
            "is not a part of the network in",
        ),
    ],
)
def test_sites_that_are_not_there_and_networks_that_do_not_nest_are_refused(
    groups: list[dict[str, Any]], where: str, words: str
) -> None:
    (found,) = opened(**model(*groups))
    assert found.where == where
    assert words in found.cause
    assert found.cure


def test_prototypes_need_features_of_one_size() -> None:
    groups = [{"sites": ["site-01"], "name": "mlp"}, {"sites": ["site-02"], "width": 4}]
    found = opened(**model(*groups), algorithm={"name": "fedproto"})
    assert [one.where for one in found] == ["model.groups.0", "model.groups.1"]
    assert all("bottleneck" in one.cure for one in found)


@pytest.mark.parametrize(
    ("group", "where"),
    [
        ({"name": "mobilenet_detector", "pretrained": True}, ["model.groups.0"]),
        ({"name": "small_cnn", "weights": "/here.pt"}, ["model.groups.0.weights"]),
        ({"name": "mobilenet_detector"}, []),
        ({"name": "no-network", "pretrained": True}, []),  # which `check` tells of
    ],
)
def test_sites_elsewhere_adopt_no_weights_for_a_group(
    group: dict[str, Any], where: list[str]
) -> None:
    of = federations.program(**model({"sites": ["site-01"], **group}))
    assert [problem.where for problem in networks.elsewhere(of)] == where
