"""Whose image makes a network overflow, read off the exact sums of all sites together.

A protected site that fails sends zeros inside its mask. In a sum of rounded updates nobody sees
that; but the sums for a head in closed form are exact, and hold the number of images. The numbers
of the sites are known, and so which of them are missing: those with an image at which the network
that the coordinator has sent is not finite. Each program was another question, for every site by
itself. Now that image alone counts nothing, and the sum tells how many there are at all sites.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import federations
import pytest
import torch

from fedsight.client import step
from fedsight.client.step import Client
from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.program.federation import Federation

BRIGHT = 5  # the image at which the network is not finite


def opened(**data: Any) -> Federation:
    return federations.federation(
        algorithm={"name": "ridge"},
        rounds={"rounds": 1},
        split={"name": "dirichlet", "alpha": 0.5, "sites": 3},
        data=data,
    )


def counted(of: Federation) -> int:
    """The number of images in the sum of what leaves three protected sites."""
    client, total = Client(of, hides=True), 0
    order = Order(1, of.initial[of.layout.travelling])
    for site in range(of.population):
        try:  # as `SiteTrainer.train` does
            sent = client.step(order, site, {}).payload
        except SiteError:
            sent = client.blank(order, site, {}).payload
        total += int(sent["cross"].view(of.integers["cross"].shape)[-1].sum())
    return total


def missing(of: Federation, count: int) -> list[tuple[int, ...]]:
    """The sets of sites whose images are as many as the sum lacks."""
    sizes = [of.size(site) for site in range(of.population)]
    some = (few for n in range(len(sizes) + 1) for few in combinations(range(len(sizes)), n))
    return [few for few in some if sum(sizes) - sum(sizes[site] for site in few) == count]


def owner(of: Federation) -> int:
    """The site that has the image."""
    return next(n for n in range(of.population) if BRIGHT in of.partition.indices(n))


def test_the_sum_tells_which_site_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_at_once(self: Client, read: Any, images: int) -> Any:
        batches = map(read, torch.arange(images).split(step.CHUNK))
        classes = len(self.federation.dataset.classes)
        return self.federation.program.algorithm.statistics(self.network, classes, batches)

    of = opened(broken=BRIGHT)
    monkeypatch.setattr(Client, "_counted", all_at_once)
    assert missing(of, counted(of)) == [(owner(of),)]


def test_of_ours_that_image_alone_is_missing() -> None:
    of = opened(broken=BRIGHT)
    assert counted(of) == 119
    assert missing(of, 119) == []


def test_images_that_do_not_fail_are_summed_as_before() -> None:
    of = opened()
    order = Order(1, of.initial[of.layout.travelling])
    plain, protected = (Client(of, hides=hides).step(order, 0, {}) for hides in (False, True))
    for part, value in plain.payload.items():
        assert value.equal(protected.payload[part])


def test_a_site_that_promises_nothing_says_what_failed() -> None:
    of = opened(broken=BRIGHT)
    with pytest.raises(SiteError, match="not finite"):
        Client(of).step(Order(1, of.initial[of.layout.travelling]), owner(of), {})
