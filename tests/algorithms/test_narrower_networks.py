"""HeteroFL: sites train parts of one network, and each value's mean is over those that train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Order
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

GROUPS: dict[str, Any] = {
    "model": {
        "width": 16,
        "groups": [{"sites": ["site-01"], "width": 8}, {"sites": ["site-0[23]"], "width": 4}],
    },
    "split": {"name": "dirichlet", "alpha": 0.3, "sites": 4, "min_samples": 4},
    "train": {"epochs": 2, "batch": 200, "lr": 0.1},  # a step has all images of its site
    "rounds": {"rounds": 5, "cohort": 2},
}
WIDTHS = (16, 8, 4, 4)


def opened(**sections: Any) -> Federation:
    return federations.federation(**{**GROUPS, **sections})


def block(large: Tensor, small: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, side) for side in small.shape)


class Site:
    """A site's network, in plain PyTorch."""

    def __init__(self, of: Federation, number: int) -> None:
        data = of.client(number)
        self.batch = of.batch(data, torch.arange(len(data)))
        built = federations.program(model={"width": WIDTHS[number]}).model
        self.module: nn.Module = built.build(1, 14, 14, 10, seed=3).module

    def trained(self, common: Mapping[str, Tensor], lr: float, steps: int) -> dict[str, Tensor]:
        """Where the leading blocks of `common` are after `steps` of plain gradient descent."""
        own = self.module.state_dict()
        self.module.load_state_dict({k: common[k][block(common[k], v)] for k, v in own.items()})
        optimizer = torch.optim.SGD(self.module.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(self.module(self.batch.x), self.batch.y).backward()
            optimizer.step()
        return {name: value.clone() for name, value in self.module.state_dict().items()}


def oracle(
    of: Federation, cohorts: Sequence[Sequence[str]], lr: float, steps: int
) -> Mapping[str, Tensor]:
    """Equations 2 and 3 of the paper, with sites weighted by their images; what no site of a round
    trains stays."""
    names = [of.partition.name(number) for number in range(4)]
    sites = {name: Site(of, number) for number, name in enumerate(names)}
    common = of.layout.state_dict(of.initial)
    for cohort in cohorts:
        total = {name: torch.zeros_like(value) for name, value in common.items()}
        weight = {name: torch.zeros_like(value) for name, value in common.items()}
        for site in cohort:
            images = len(sites[site].batch.y)
            for name, value in sites[site].trained(common, lr, steps).items():
                total[name][block(total[name], value)] += images * value
                weight[name][block(total[name], value)] += images
        common = {
            name: torch.where(weight[name] > 0, total[name] / weight[name].clamp(min=1), value)
            for name, value in common.items()
        }
    return common


def test_it_follows_its_paper_with_two_of_four_unequal_sites_in_a_round() -> None:
    of, diary = opened(), federations.Diary()
    with one_thread():
        vector = federations.learn(of, diary=diary).vector
        cohorts = [line["sites"] for line in diary.lines]
        expected = oracle(of, cohorts, lr=0.1, steps=2)
    assert any("site-00" not in cohort for cohort in cohorts)
    assert len({len(of.client(site)) for site in range(4)}) > 1
    found = of.layout.state_dict(vector)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_what_no_site_of_a_round_trains_keeps_its_bits() -> None:
    narrow = {"sites": ["site-*"], "width": 8}
    of = opened(model={"width": 16, "groups": [narrow]})
    vector = federations.learn(of).vector
    member = of.member(0)
    assert member.selection is not None
    still = torch.ones(of.layout.size, dtype=torch.bool)
    still[member.selection.index] = False
    assert torch.equal(vector[still], of.initial[still])
    assert not torch.equal(vector[~still], of.initial[~still])


def test_groups_of_the_same_network_train_as_one(tmp_path: Path) -> None:
    plain = opened(model={"width": 8})
    alike = opened(model={"width": 8, "groups": [{"sites": ["site-01"], "width": 8}]})
    assert alike.member(1).selection is None
    shas = [federations.sha(federations.learn(of).vector) for of in (plain, alike)]
    assert shas[0] == shas[1]


def test_an_update_says_nothing_of_what_its_site_does_not_train() -> None:
    of = opened()
    member = of.member(2)
    assert member.selection is not None
    begun = of.initial[of.layout.travelling]
    reply = Client(member).step(Order(1, begun), 2, {})
    delta = reply.payload["delta"]
    assert delta.shape == begun.shape
    assert torch.equal(member.selection.placed(member.selection.taken(delta)), delta)
    assert not delta[member.selection.index].eq(0).all()
    # nor does it depend on that
    other = torch.randn(len(begun), generator=torch.manual_seed(0))
    other[member.selection.index] = begun[member.selection.index]
    again = Client(member).step(Order(1, other), 2, {})
    assert federations.sha(again.payload["delta"]) == federations.sha(delta)


def test_a_blank_reply_has_the_shape_of_any_other() -> None:
    of = opened(algorithm={"name": "ditto"})
    begun, client = of.initial[of.layout.travelling], Client(of.member(1))
    blank, sent = client.blank(Order(1, begun), 1, {}), client.step(Order(1, begun), 1, {})
    for one, other in ((blank.payload, sent.payload), (blank.memory, sent.memory)):
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    assert len(sent.memory["personal"]) == of.member(1).layout.size < of.layout.size


def test_personal_norms_of_a_narrower_network_stay_at_its_site(tmp_path: Path) -> None:
    of = opened(algorithm={"name": "fedbn"})
    begun, client = of.initial[of.layout.travelling], Client(of.member(1))
    own = client.layout.personal
    memory = {"personal": torch.full((own.stop - own.start,), 0.5)}
    reply = client.step(Order(1, begun), 1, memory)
    assert reply.payload.keys() == {"delta"}
    assert len(reply.payload["delta"]) == of.layout.travelling.stop
    assert len(reply.memory["personal"]) == own.stop - own.start
    federations.learn(of, InProcessEngine(of, tmp_path))


def test_each_site_is_measured_with_its_own_network() -> None:
    of = opened(rounds={"rounds": 1})
    engine = InProcessEngine(of)
    vector = federations.learn(of, engine).travelling
    sums = engine.measure(vector, 1)
    assert [view.site for view in of.views] == [0, 1, 2, 3]
    for site, found in enumerate(sums):
        client = Client(of.member(site))
        client.vector.copy_(of.member(site).received(vector))
        assert federations.same_sums([found], [client.measure_all(of.tested(of.views[site]))])
    engine.close()


@pytest.mark.parametrize("site", [0, 1, 3])
def test_a_site_alone_trains_its_own_network(site: int) -> None:
    of = opened()
    alone = of.alone(site)
    assert alone.layout.digest() == of.member(site).layout.digest()
    assert alone.selection is None
    begun = alone.initial[alone.layout.travelling]
    reply = Client(alone).step(Order(1, begun), 0, {})
    assert len(reply.payload["delta"]) == alone.layout.travelling.stop
    plain = federations.federation(**{**GROUPS, "model": {"width": WIDTHS[site]}}).alone(site)
    expected = Client(plain).step(Order(1, plain.initial), 0, {})
    assert torch.equal(expected.payload["delta"], reply.payload["delta"])


def test_all_pooled_train_the_whole_network() -> None:
    of = opened()
    assert of.all_pooled().layout.digest() == of.layout.digest()
    assert replace(of.all_pooled()).member(1).group is None
