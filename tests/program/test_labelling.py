"""Sites that do not label all classes: what goes with them, and what their images then teach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.client.company import Company
from fedsight.client.step import Client
from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError
from fedsight.core.types import Order, Reply
from fedsight.evaluation.delivery.choice import offsets
from fedsight.evaluation.description import describe
from fedsight.evaluation.figures import Evaluator
from fedsight.program import labelling
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Speed

SPLIT = {"split": {"name": "labels", "sites": 4, "labels": 5}}


def held() -> dict[str, list[str]]:
    """The classes of which each site of the split has images."""
    plain = federations.federation(**SPLIT)
    found = {}
    for site in range(4):
        numbers = np.unique(plain.client(site).labels())
        found[plain.name(site)] = [plain.dataset.classes[label] for label in numbers]
    return found


def opened(labelled: Any = None, **sections: Any) -> Federation:
    data = {"labelled": labelled} if labelled is None else {"labelled": _pairs(labelled)}
    return federations.federation(**{**SPLIT, **sections}, data=data)


def _pairs(labelled: Any) -> Any:
    if isinstance(labelled, list):
        return (("", tuple(labelled)),)
    return tuple((site, tuple(names)) for site, names in labelled.items())


def head_rows(of: Federation, vector: Tensor) -> Tensor:
    """The update of the last layer's rows [classes, ...] in a vector."""
    reply = Client(of, Speed(device="cpu")).step(Order(1, vector), 0, {})
    layout = of.layout
    name = max(
        e.name for e in layout.entries if e.name in of.network.head and e.name.endswith("weight")
    )
    entry = next(e for e in layout.entries if e.name == name)
    padded = torch.zeros(layout.size)
    padded[layout.travelling] = reply.payload["delta"]
    return entry.view(padded).reshape(len(of.dataset.classes), -1)


def test_a_site_teaches_nothing_of_classes_that_it_does_not_label() -> None:
    labelled = held()
    plain, masked = opened(), opened({"site-00": labelled["site-00"]})
    start = plain.initial[plain.layout.travelling]
    hidden = [name not in labelled["site-00"] for name in plain.dataset.classes]
    assert head_rows(plain, start)[hidden].any()
    found = head_rows(masked, start)
    assert not found[hidden].any()
    assert found[[not one for one in hidden]].any()


def test_where_all_sites_label_all_classes_no_bit_changes() -> None:
    names = list(federations.federation().dataset.classes)
    plain, all_named = federations.learn(opened()), opened({f"site-0{n}": names for n in range(4)})
    assert all_named.hidden is None
    assert federations.sha(federations.learn(all_named).vector) == federations.sha(plain.vector)


def test_pooled_images_keep_the_mask_of_their_site() -> None:
    labelled = held()
    whole = opened({"site-00": labelled["site-00"]}).all_pooled()
    data = whole.client(0)
    seen = data.unlabelled(torch.arange(len(data)))
    assert seen is not None
    classes = [name not in labelled["site-00"] for name in whole.dataset.classes]
    assert torch.equal(
        seen[data.origins == 0], torch.tensor(classes).expand(int((data.origins == 0).sum()), -1)
    )
    assert not seen[data.origins != 0].any()


@pytest.mark.parametrize(
    "privacy", [{"name": "none"}, {"name": "example", "noise_multiplier": 1.0, "delta": 1e-3}]
)
def test_a_run_with_masks_ends_with_figures(privacy: dict[str, Any]) -> None:
    of = opened(held(), privacy=privacy)
    result = federations.learn(of)
    assert bool(torch.isfinite(result.vector).all())


def test_sites_side_by_side_keep_their_masks() -> None:
    of = opened(held())
    order = Order(1, of.initial[of.layout.travelling])
    sites = [0, 2]
    assert of.size(0) == of.size(2)
    found = Company(of, Speed(device="cpu", together=4)).together(order, sites)
    assert found is not None
    alone = Client(of, Speed(device="cpu"))
    for site, reply in zip(sites, found, strict=True):
        assert isinstance(reply, Reply)
        due = alone.step(order, site, {}).payload["delta"]
        torch.testing.assert_close(reply.payload["delta"], due, atol=1e-5, rtol=1e-4)


def test_a_site_s_figures_leave_its_unlabelled_classes_out() -> None:
    labelled = held()
    of = opened(labelled, algorithm={"name": "fedbn"}, model={"norm": "batch"})
    assert Evaluator(of).site_test == "whole test part"
    client = Client(of, Speed(device="cpu"))
    client.load(of.initial[of.layout.travelling], {})
    sums = client.measure_all(of.tested(of.views[0]))["confusion"].total
    hidden = torch.tensor([name not in labelled["site-00"] for name in of.dataset.classes])
    wrong = torch.from_numpy(sums.copy())
    wrong.fill_diagonal_(0.0)
    assert wrong.sum() > 0
    assert wrong[:, hidden].sum() == 0


def test_what_a_site_does_not_label_keeps_its_score_when_priors_are_corrected() -> None:
    labelled = held()
    of = opened({"site-00": labelled["site-00"]})
    found = offsets(of, 0)
    assert found is not None
    hidden = np.array([name not in labelled["site-00"] for name in of.dataset.classes])
    assert not found[hidden].any()
    assert found[~hidden].any()


def test_a_run_says_which_classes_a_site_does_not_label() -> None:
    labelled = held()
    facts = describe(Session(opened({"site-00": labelled["site-00"]})), "run")
    names = facts["classes"]
    assert [names[label] for label in facts["sites"][0]["unlabelled"]] == [
        name for name in names if name not in labelled["site-00"]
    ]
    assert facts["sites"][1]["unlabelled"] == []


def wrong(labelled: Any, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(labelled, **sections)
    assert all(
        problem.where == "data.labelled" and problem.cure for problem in caught.value.problems
    )
    return " ".join(problem.cause for problem in caught.value.problems)


def test_what_sites_cannot_say_of_their_labels_is_refused_with_the_cure() -> None:
    labelled = held()
    assert "names 'site-9', which is not a site" in wrong({"site-9": labelled["site-00"]})
    assert "the unknown class 'Shoes'" in wrong({"site-00": ["Shoes"]})
    assert "labels none of the classes" in wrong({"site-00": []})
    few = labelled["site-00"][1:]
    assert "of its images have this label" in wrong({"site-00": few})
    missing = sorted(set(federations.federation().dataset.classes) - set(few))
    names = [name for name in federations.federation().dataset.classes if name not in missing]
    assert f"no site labels the class '{missing[0]}'" in wrong(names)


@pytest.mark.parametrize(
    "sections",
    [
        {"task": {"name": "ordinal"}},
        {"algorithm": {"name": "ridge"}, "rounds": {"rounds": 1}},
        {"finish": {"name": "ridge"}},
        {"algorithm": {"name": "fedmd"}, "public": {"images": 9}},
    ],
)
def test_losses_and_sums_that_cannot_leave_a_class_out_are_refused(
    sections: dict[str, Any],
) -> None:
    program = federations.program(**{**SPLIT, **sections})
    data = program.data.model_copy(update={"labelled": (("site-00", ("Coat",)),)})
    assert not list(labelling.problems(program))
    found = list(labelling.problems(replace(program, data=data)))
    assert len(found) == 1
    assert found[0].where == "data.labelled"
    with pytest.raises(ConfigError, match=r"does not label"):
        federate(replace(program, data=data))


def test_class_means_are_of_a_class_s_own_images_and_go_with_it() -> None:
    program = federations.program(**SPLIT, algorithm={"name": "ncm"}, rounds={"rounds": 1})
    data = program.data.model_copy(update={"labelled": (("site-00", ("Coat",)),)})
    assert not list(labelling.problems(replace(program, data=data)))


def test_prototypes_are_of_a_class_s_own_images_and_a_run_with_them_ends() -> None:
    of = opened(held(), algorithm={"name": "fedproto"}, rounds={"rounds": 1})
    assert not list(labelling.problems(of.program))
    assert bool(torch.isfinite(federations.learn(of).vector).all())
