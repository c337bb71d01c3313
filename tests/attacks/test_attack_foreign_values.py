"""A site with a narrow network updates what it does not have.

Where networks differ, each value is divided by the weight of the sites that train it. A narrow
site's weight is not in the divisor of the wide layers: of ten equal sites with one wide one among
them, a value that a narrow site added there would count ten times what it weighs in the mean.
"""

from __future__ import annotations

import tempfile

import federations
import pytest
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.engines.base import Accepted
from fedsight.engines.protected import aggregator_of
from fedsight.engines.remote import messages, replies
from fedsight.program.federation import Federation

NARROW = 1
GROUPS = {"width": 8, "groups": [{"sites": ["site-01"], "width": 4}]}


def add(of: Federation, delta: Tensor) -> None:
    """What the coordinator does with an update that arrives from the narrow site."""
    order = Order(1, of.initial[of.layout.travelling].clone())
    sent = of.parts["delta"].encode(delta, 0)
    known = Accepted(NARROW, of.name(NARROW), of.size(NARROW), 1.0)
    with tempfile.TemporaryFile() as spool:
        spool.write(messages.pack([sent]))
        replies.add(of, aggregator_of(of, 1), spool, known, order)


def honest(of: Federation) -> Tensor:
    order = Order(1, of.initial[of.layout.travelling].clone())
    return Client(of.member(NARROW)).step(order, NARROW, {}).payload["delta"]


def test_an_honest_update_is_added() -> None:
    of = federations.federation(model=GROUPS)
    add(of, honest(of))


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_value_that_the_sites_network_lacks_is_refused(value: float) -> None:
    of = federations.federation(model=GROUPS)
    selection, delta = of.member(NARROW).selection, honest(of).clone()
    assert selection is not None
    foreign = torch.ones(len(delta), dtype=torch.bool)
    foreign[selection.index] = False
    delta[foreign.nonzero()[0]] = value
    with pytest.raises(SiteError, match="that its network does not have"):
        add(of, delta)
