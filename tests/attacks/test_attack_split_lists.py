"""Lists of survivors that differ from site to site uncover one site's update; ours are agreed on.

The coordinator tells each site "your neighbours dropped out, except the target". Each answers with
shares of the mask keys of those neighbours, and with a share of the target's seed. Together these
are all secrets that the target's masks are made of (Bonawitz et al. 2017, section 6.2, has the
consistency round against it). The first version of this project believed such lists: `as_told`.
"""

from __future__ import annotations

import numpy as np
from secagg_rounds import (
    MaliciousCoordinator,
    as_told,
    binding,
    everybody_refuses,
    lies,
    lists,
    update,
)

from fedsight.privacy.secagg.messages import Lists
from fedsight.privacy.secure import Secure


def uncover(attacker: MaliciousCoordinator, told: dict[int, Lists], target: int) -> bool:
    """Whether the same lists uncover the target where they are believed."""
    for site, lie in told.items():
        attacker.learn(site, as_told(attacker.clients[site], attacker.request(site, lie)))
    return np.array_equal(attacker.take_masks_off([target]), update(target))


def test_one_of_twenty_sites_on_a_complete_graph() -> None:
    """Nobody colludes, and 30 % may drop out: the coordinator alone uncovers a site exactly."""
    given = Secure(name="secagg", corrupt=0.0, dropout=0.3).parameters(20)
    assert (given.threshold, given.survivors) == (11, 14)
    attacker = MaliciousCoordinator(binding(20, given))
    everybody, target = range(20), 0
    attacker.advertise()
    attacker.deal(everybody)
    few = range(1, 11)  # the target hears of so few others that 6 lies a site suffice
    for site in everybody:
        attacker.mask(site, few if site == target else None)
    told = lies(20, few, 6)
    everybody_refuses(attacker, told)
    assert uncover(attacker, told, target)


def test_one_of_a_thousand_sites_on_a_ring() -> None:
    """The default rates. Only sites on the target's side of the ring take part in this."""
    given = Secure(name="secagg", grinding=0).parameters(1000)
    t = given.threshold
    assert (given.neighbours, t) == (96, 67)
    attacker = MaliciousCoordinator(binding(1000, given))
    graph = attacker.binding.graph
    target = graph.order[500]
    distance = {site: abs(place - 500) for place, site in enumerate(graph.order)}

    def closest(site: int) -> list[int]:
        """As few of a site's neighbours as it takes, those next to the target."""
        return sorted(graph.of(site), key=distance.__getitem__)[:t]

    attacker.advertise()
    heard = closest(target)  # the sites whose masks the target is given, to be taken off again
    asked = sorted({target, *heard, *(holder for site in heard for holder in closest(site))})
    dealers = sorted({*asked, *(dealer for site in asked for dealer in closest(site))})
    for site in dealers:
        attacker.deal([site], {*closest(site), *asked})
    for site in asked:
        attacker.mask(site, closest(site))
    told = {w: lists(1000, set(heard) & set(graph.of(w)) - {w}) for w in asked}
    everybody_refuses(attacker, told)
    assert uncover(attacker, told, target)
