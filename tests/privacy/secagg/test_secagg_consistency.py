"""What a site asks for before it reveals a share: signatures, enough, and of the same lists."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from secagg_rounds import MaliciousCoordinator, binding, identity, lists

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import Minimums, SecAggClient
from fedsight.privacy.secagg.consistency import lists_part
from fedsight.privacy.secagg.graph import Parameters, parameters

SITES = 14
RING = Parameters(8, threshold=6, survivors=12, window=1, committee=7, signatures=5)


def ready(**changes: object) -> MaliciousCoordinator:
    """All updates are masked, and nobody has agreed to anything."""
    found = MaliciousCoordinator(binding(SITES, RING, **changes))
    found.advertise()
    found.deal(range(SITES))
    for site in range(SITES):
        found.mask(site)
    return found


@pytest.fixture(scope="module")
def masked() -> MaliciousCoordinator:
    """A round whose clients refuse everything that follows, so that it stays as it is."""
    return ready()


def signatures(of: m.Binding, told: m.Lists, signers: list[int]) -> dict[int, bytes]:
    """What these sites would sign, colluders among them."""
    return {n: identity(n).sign(lists_part(of, told)) for n in signers}


EVERYBODY = lists(SITES, ())


def too_few(of: m.Binding) -> dict[int, bytes]:
    members = sorted(of.committee)
    return signatures(of, EVERYBODY, members[:4]) | {members[4]: bytes(64)}


def another_attempt(of: m.Binding) -> dict[int, bytes]:
    other = binding(SITES, RING, serial=2)
    return signatures(other, EVERYBODY, sorted(of.committee)[:5])


def other_lists(of: m.Binding) -> dict[int, bytes]:
    return signatures(of, lists(SITES, [13]), sorted(of.committee)[:5])


def an_outsider(of: m.Binding) -> dict[int, bytes]:
    outsider = min(set(range(SITES)) - of.committee)
    return signatures(of, EVERYBODY, [*sorted(of.committee)[:4], outsider])


def in_each_others_name(of: m.Binding) -> dict[int, bytes]:
    one, *others = sorted(of.committee)[:5]
    said = signatures(of, EVERYBODY, [one])[one]
    return dict.fromkeys([one, *others], said)


FORGED: dict[str, tuple[Callable[[m.Binding], dict[int, bytes]], str]] = {
    "too few": (too_few, "did not sign these lists"),
    "another attempt": (another_attempt, "did not sign these lists"),
    "other lists": (other_lists, "did not sign these lists"),
    "an outsider": (an_outsider, "does not belong to the committee"),
    "in each other's name": (in_each_others_name, "did not sign these lists"),
}


@pytest.mark.parametrize("name", FORGED)
def test_lists_without_enough_valid_signatures_reveal_nothing(
    masked: MaliciousCoordinator, name: str
) -> None:
    made, why = FORGED[name]
    for site in range(SITES):
        with pytest.raises(SiteError, match=why):
            masked.clients[site].unmask(masked.request(site, EVERYBODY, made(masked.binding)))


def test_a_signature_counts_once(masked: MaliciousCoordinator) -> None:
    of = masked.binding
    one, said = next(iter(signatures(of, EVERYBODY, sorted(of.committee)).items()))
    record = one.to_bytes(m.NUMBER, "big") + said
    message = m.UNMASK + of.digest + EVERYBODY.data(SITES) + 5 * record
    with pytest.raises(SiteError, match="appears twice"):
        masked.clients[0].unmask(message)


def test_fewer_records_than_signatures_needed_are_refused(masked: MaliciousCoordinator) -> None:
    of = masked.binding
    some = signatures(of, EVERYBODY, sorted(of.committee)[:3])
    with pytest.raises(SiteError, match="3 sites signed the lists, but 5 signatures are needed"):
        masked.clients[0].unmask(m.write_unmask(of, EVERYBODY, m.Proof(some, {})))


def test_a_site_outside_the_committee_signs_nothing(masked: MaliciousCoordinator) -> None:
    for site in set(range(SITES)) - masked.binding.committee:
        with pytest.raises(SiteError, match="does not belong to the committee"):
            masked.agree(site, EVERYBODY)


def test_who_signed_one_pair_of_lists_is_done_with_others() -> None:
    attacker = ready()
    members = sorted(attacker.binding.committee)
    told, other = EVERYBODY, lists(SITES, [members[-1]])
    for site in members:
        attacker.agree(site, told)
    # Colluders sign whatever is wanted, and all of the committee collude but one.
    forged = signatures(attacker.binding, other, members[1:])
    with pytest.raises(SiteError, match="answered before, with other content"):
        attacker.agree(members[0], other)
    with pytest.raises(SiteError, match="this site signed other lists"):
        attacker.clients[members[0]].unmask(attacker.request(members[0], other, forged))
    answer = attacker.clients[members[0]].unmask(attacker.request(members[0], told))
    attacker.learn(members[0], answer)


def test_an_inbox_confirmed_in_another_attempt_does_not_count(masked: MaliciousCoordinator) -> None:
    earlier = ready(serial=2)
    of = masked.binding
    said = signatures(of, EVERYBODY, sorted(of.committee)[:5])
    near = set(of.graph.of(0))
    for confirmed in ({n: earlier.confirmed[n] for n in near}, {}):
        with pytest.raises(SiteError, match="did not confirm the shares"):
            masked.clients[0].unmask(m.write_unmask(of, EVERYBODY, m.Proof(said, confirmed)))


def test_a_committee_or_graph_of_the_coordinators_own_is_refused() -> None:
    computed = parameters(200, 0.1, 0.1, True)
    least = Minimums().at_least(computed)
    changes = {"committee": 200, "signatures": 1, "window": 0, "neighbours": 198}
    for name, value in changes.items():
        of = binding(200, Parameters(**{**vars(computed), name: value}))
        with pytest.raises(SiteError, match="not the one that the program's rates determine"):
            SecAggClient(identity(0), of, 0, least)
    SecAggClient(identity(0), binding(200, computed), 0, least)
