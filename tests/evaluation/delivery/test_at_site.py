"""Delivery at a real site: which images choose, which measure, and what a site does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import ModelError
from fedsight.data.base import ArrayImages, Part
from fedsight.data.partition import Groups
from fedsight.evaluation.delivery.at_site import Chosen, FinalModel, choose_at_site, halves
from fedsight.evaluation.delivery.base import HALF_OF_TEST, VALIDATION
from fedsight.evaluation.delivery.choice import offsets
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.views import View

SPEED = Speed(device="cpu")


def alone_there(tests: int = 100, **sections: Any) -> Federation:
    """A site's own images, as `open_site` opens them: it knows of no other site."""
    sections = {"data": {"train": 100, "test": tests}, **sections}
    made = federations.federation(split={"name": "iid", "sites": 1}, **sections)
    everything = np.arange(len(made.dataset.test))
    test = replace(made.dataset.test, sites=["ward"] * tests)
    data = replace(made.dataset, test=test)
    partition = Groups([np.arange(len(data.train))], ["ward"])
    return replace(made, dataset=data, partition=partition, views=(View(0, everything),))


def final(of: Federation, **changes: Any) -> FinalModel:
    """A model that the run ended with: the one that it began with."""
    vector = of.initial[of.layout.travelling].clone()
    return replace(FinalModel(vector, None, None, 2, 2), **changes)


def chosen(of: Federation) -> Chosen:
    """What the site gets, without a model of its own."""
    return choose_at_site(of, 0, final(of), SPEED, None)


@given(
    groups=st.lists(st.one_of(st.none(), st.integers(0, 6)), min_size=1, max_size=60),
    seed=st.integers(0, 99),
)
def test_halves_share_no_image_and_no_group(groups: list[int | None], seed: int) -> None:
    names = [None if group is None else str(group) for group in groups]
    images = ArrayImages(torch.zeros(len(groups), 1, 1, 1), "none")
    part = Part(images, np.zeros(len(groups), np.int64), groups=names)
    everything = np.arange(len(groups))
    one, other = halves(part, everything, seed, "ward")
    assert sorted([*one, *other]) == everything.tolist()
    shared = {names[place] for place in one} & {names[place] for place in other}
    assert shared <= {None}
    largest = max((names.count(name) for name in set(names) - {None}), default=1)
    assert abs(len(one) - len(other)) <= 2 * largest


def test_the_half_that_measures_has_no_say_in_the_choice() -> None:
    here = alone_there()
    first = chosen(here)
    one, other = halves(here.dataset.test, here.views[0].indices, here.program.seed, "ward")
    labels = here.dataset.test.labels.copy()
    labels[other] = (labels[other] + 1) % 10
    test = replace(here.dataset.test, labels=labels)
    second = chosen(replace(here, dataset=replace(here.dataset, test=test)))
    for key in ("kind", "settings", "held_out", "by_kind", "chosen_on"):
        assert first.facts[key] == second.facts[key]
    assert (first.facts["chosen_on"], first.facts["held_out"]) == (HALF_OF_TEST, len(one))
    assert first.facts["score"] != second.facts["score"]
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_a_validation_part_chooses_and_all_test_images_measure() -> None:
    here = alone_there()
    data = here.dataset
    held = Part(
        ArrayImages(data.train.images.read(torch.arange(30)), "held"), data.train.labels[:30]
    )
    facts = chosen(replace(here, dataset=replace(data, validation=held))).facts
    assert (facts["chosen_on"], facts["held_out"], facts["tested"]) == (VALIDATION, 30, 100)


def test_too_few_images_choose_nothing() -> None:
    facts = chosen(alone_there(tests=38)).facts
    assert (facts["kind"], facts["held_out"], facts["chosen_on"]) == ("shared", 0, None)
    assert (facts["tested"], facts["gain"]) == (38, 0.0)


def test_a_site_that_knows_no_counts_but_its_own_takes_the_others_for_even() -> None:
    here = alone_there()
    odds = offsets(here, 0, known=False)
    counts = np.bincount(here.dataset.train.labels, minlength=10) + 0.5
    assert odds is not None
    assert np.allclose(np.exp(odds), counts / counts.sum() * 10)


def test_parameters_that_only_the_coordinator_had_are_in_what_a_site_gets() -> None:
    here = alone_there(train={"only": ["head"]})
    layout = here.layout
    kept = torch.randn(layout.size - layout.travelling.stop)
    assert len(kept)
    found = choose_at_site(here, 0, final(here, kept=kept), SPEED, None)
    vector = here.initial.clone()
    vector[layout.kept] = kept
    frozen = [entry.name for entry in layout.entries if entry.kind.value == "frozen"]
    assert frozen
    assert all(torch.equal(found.tensors[n], layout.state_dict(vector)[n]) for n in frozen)
    with pytest.raises(ModelError, match="do not travel"):
        choose_at_site(here, 0, final(here, kept=kept[1:]), SPEED, None)


def test_a_model_of_another_network_or_without_numbers_is_refused() -> None:
    here = alone_there()
    vector = final(here).vector
    with pytest.raises(ModelError, match="not one for these images"):
        choose_at_site(here, 0, final(here, vector=vector[1:]), SPEED, None)
    with pytest.raises(ModelError, match="not finite"):
        choose_at_site(here, 0, final(here, vector=vector / 0), SPEED, None)
