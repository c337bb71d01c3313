"""The phases: the sum is exact whoever drops out, and what is unsound is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import Minimums, SecAggClient
from fedsight.privacy.secagg.graph import Parameters, parameters
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.server import SecAggServer

IDENTITIES = [Identity(bytes([number]) * 32) for number in range(40)]
LENGTH = 300


def binding(sites: int, given: Parameters, round: int = 1, serial: int = 1) -> Binding:
    roster = tuple((f"site-{n}", IDENTITIES[n].public.hex()) for n in range(sites))
    table = {"bits": 20}
    return Binding("run", "program", "", round, serial, "order", roster, (0,) * sites, given, table)


def client(of: Binding, number: int, least: Minimums | None = None) -> SecAggClient:
    return SecAggClient(IDENTITIES[number], of, number, least or Minimums())


@dataclass
class Table:
    """All sides of a round."""

    binding: Binding
    server: SecAggServer
    clients: list[SecAggClient]

    @classmethod
    def of(cls, sites: int, given: Parameters | None = None, **changes: int) -> Table:
        """A new round."""
        made = binding(sites, given or parameters(sites, 0.0, 0.25, True), **changes)
        return cls(made, SecAggServer(made), [client(made, n) for n in range(sites)])

    def advertise(self, sites: Iterable[int]) -> None:
        for n in sites:
            self.server.advert(n, self.clients[n].advertise())

    def share(self, sites: Iterable[int]) -> None:
        for n in sites:
            self.server.share(n, self.clients[n].share(self.server.adverts(n)))

    def confirm(self, sites: Iterable[int]) -> None:
        for n in sites:
            self.server.confirm(n, self.clients[n].confirm(self.server.inbox(n)))

    def agree(self, survivors: Iterable[int], sites: Iterable[int]) -> None:
        lists, alive = self.server.lists(survivors), set(sites)
        for n in set(self.server.committee) & alive:
            self.server.agree(n, self.clients[n].agree(lists))

    def update(self, number: int) -> Residues:
        draws = np.random.default_rng(number)
        return draws.integers(0, 1 << 20, LENGTH).astype(np.uint32)

    def masked(self, sites: Iterable[int]) -> Residues:
        total = np.zeros(LENGTH, np.uint32)
        for n in sites:
            words = self.update(n)
            self.clients[n].masker().mask(words)
            assert not np.array_equal(words, self.update(n))
            total += words
        return total

    def plain(self, sites: Iterable[int]) -> Residues:
        return np.sum([self.update(n) for n in sites], axis=0, dtype=np.uint32)

    def to_agree(self) -> bytes:
        """A round up to the request to agree."""
        everybody = range(len(self.clients))
        self.advertise(everybody)
        self.share(everybody)
        self.confirm(everybody)
        self.masked(everybody)
        return self.server.lists(everybody)

    def to_unmask(self) -> bytes:
        """A round up to the last request to site 0."""
        self.to_agree()
        everybody = range(len(self.clients))
        self.agree(everybody, everybody)
        return self.server.request(0)


def run(table: Table, stages: list[int]) -> None:
    """A round in which site n is gone before phase stages[n]; 6 for one that stays."""
    alive = [[n for n, stage in enumerate(stages) if stage > phase] for phase in range(6)]
    table.advertise(alive[0])
    table.share(alive[1])
    table.confirm(alive[2])
    total = table.masked(alive[3])
    table.agree(alive[3], alive[4])
    for n in alive[5]:
        table.server.answer(n, table.clients[n].unmask(table.server.request(n)))
    table.server.unmask(total)
    assert np.array_equal(total, table.plain(alive[3]))


@settings(max_examples=60)
@given(st.data())
def test_whoever_drops_out_in_whatever_phase_the_sum_is_exact(data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 12))
    gone = data.draw(st.integers(0, (sites - 1) // 2))
    given = parameters(sites, 0.0, gone / sites, True)
    stages = data.draw(st.lists(st.integers(0, 6), min_size=sites, max_size=sites))
    table = Table.of(sites, given)
    # All updates of the sum, and all answers, must be enough.
    enough = (
        sum(stage > 3 for stage in stages) >= given.survivors
        and sum(stage > 4 for stage in stages) >= given.signatures
        and sum(stage > 5 for stage in stages) >= given.threshold
    )
    if enough:
        run(table, stages)
    else:
        with pytest.raises(SiteError, match=r"(needs \d+|\d+ (signatures )?are needed)"):
            run(table, stages)


@given(st.data())
def test_the_sum_is_exact_on_a_sparse_graph(data: st.DataObject) -> None:
    sites = data.draw(st.integers(12, 24))
    given = Parameters(8, 5, sites - 3, window=1, committee=9, signatures=5)
    gone = data.draw(st.lists(st.integers(0, sites - 1), max_size=3, unique=True))
    phases = data.draw(st.lists(st.integers(0, 5), min_size=len(gone), max_size=len(gone)))
    stages = [6] * sites
    for site, phase in zip(gone, phases, strict=True):
        stages[site] = phase
    run(Table.of(sites, given), stages)


def test_one_masked_update_looks_like_noise() -> None:
    table = Table.of(3)
    table.advertise(range(3))
    table.share(range(3))
    table.confirm(range(3))
    words = np.zeros(100_000, np.uint32)
    table.clients[0].masker().mask(words)
    bits = np.unpackbits(words.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / len(bits) ** 0.5


# What a site refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "why"),
    [
        (Minimums(cohort=6), "5 sites in the cohort, but this site requires at least 6"),
        (Minimums(threshold=5), "4 shares to reconstruct a secret"),
        (Minimums(neighbours=5), "4 neighbours"),
        (Minimums(survivors=5), "4 survivors"),
    ],
)
def test_less_than_a_sites_minimums_is_refused(least: Minimums, why: str) -> None:
    given = Parameters(4, 4, 4)
    with pytest.raises(SiteError, match=why):
        client(binding(5, given), 0, least)
    client(binding(5, given), 0)


def test_a_coordinator_cannot_go_below_what_the_program_asks_for() -> None:
    least = Minimums().at_least(parameters(10, 0.1, 0.1, True))
    assert (least.threshold, least.neighbours, least.survivors) == (6, 9, 9)
    with pytest.raises(SiteError, match="shares to reconstruct a secret"):
        client(binding(10, Parameters(9, 1, 9)), 0, least)


def test_a_roster_with_another_key_for_this_site_is_refused() -> None:
    with pytest.raises(SiteError, match="another identity key"):
        SecAggClient(IDENTITIES[7], binding(4, Parameters(3, 3, 3)), 0, Minimums())


def flip(message: bytes, place: int) -> bytes:
    place %= len(message)
    return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]


def test_keys_that_were_swapped_or_not_signed_are_refused() -> None:
    table = Table.of(4)
    table.advertise(range(4))
    adverts = table.server.adverts(0)
    first = m.MARK + m.DIGEST + m.NUMBER
    for place in range(first, first + m.ADVERT, 16):
        with pytest.raises(
            SiteError, match="the keys of site 'site-1' are not signed by that site"
        ):
            table.clients[0].share(flip(adverts, place))
    step = m.NUMBER + m.ADVERT
    body = adverts[m.MARK + m.DIGEST :]
    swapped = body[: m.NUMBER] + body[step + m.NUMBER : 2 * step] + body[step:]
    with pytest.raises(SiteError, match="are not signed by that site"):
        table.clients[0].share(adverts[: m.MARK + m.DIGEST] + swapped)
    table.clients[0].share(adverts)  # a refusal reveals nothing and ends nothing


def test_keys_of_an_earlier_attempt_are_refused() -> None:
    old, new = Table.of(4), Table.of(4, serial=2)
    old.advertise(range(4))
    stale = old.server.adverts(0)
    new.clients[0].advertise()
    with pytest.raises(SiteError, match="stale or replayed"):
        new.clients[0].share(stale)
    forged = stale[: m.MARK] + new.binding.digest + stale[m.MARK + m.DIGEST :]
    with pytest.raises(SiteError, match="are not signed by that site"):
        new.clients[0].share(forged)
    with pytest.raises(SiteError, match="stale or replayed"):
        new.server.advert(0, old.clients[0].advertise())


def test_too_few_keys_are_refused() -> None:
    table = Table.of(5, Parameters(4, 4, 4))
    table.advertise(range(5))
    adverts = table.server.adverts(0)
    short = adverts[: len(adverts) - 2 * (m.NUMBER + m.ADVERT)]
    with pytest.raises(SiteError, match="only 3 sites of the neighbourhood are left"):
        table.clients[0].share(short)


FIRST = m.MARK + m.DIGEST + m.NUMBER  # where the first record of a message begins


def another_sites(table: Table) -> bytes:
    """A message to site 0 with shares that site 1 sealed for site 2."""
    theirs = table.server.inbox(2)[FIRST - m.NUMBER + (m.NUMBER + m.SEALED) :]
    return table.server.inbox(0)[: FIRST - m.NUMBER] + theirs[: m.NUMBER + m.SEALED]


@pytest.mark.parametrize("place", [FIRST, FIRST + 20, FIRST + m.SEALED - 1, None])
def test_an_altered_ciphertext_is_complained_about_by_name(place: int | None) -> None:
    table = Table.of(4)
    table.advertise(range(4))
    table.share(range(4))
    inbox = table.server.inbox(0)
    asked = another_sites(table) if place is None else flip(inbox, place)
    said = table.clients[0].confirm(asked)
    assert said == table.clients[0].confirm(asked), "the same answer again"
    assert table.clients[0].unopened == ["site-1"]
    with pytest.raises(SiteError, match=r"site 'site-0' cannot open the shares .* by 'site-1'"):
        table.server.confirm(0, said)
    assert table.server.conflicts == {(1, 0)}
    for later in (table.clients[0].masker, lambda: table.clients[0].confirm(inbox)):
        with pytest.raises(SiteError, match="refused a request"):
            later()


def test_a_share_that_comes_twice_is_refused() -> None:
    table = Table.of(4)
    table.advertise(range(4))
    table.share(range(4))
    inbox = table.server.inbox(0)
    with pytest.raises(SiteError, match="appears twice"):
        table.clients[0].confirm(inbox + inbox[-(m.NUMBER + m.SEALED) :])


def test_a_second_masked_update_is_refused() -> None:
    table = Table.of(4)
    table.to_unmask()
    with pytest.raises(SiteError, match="was already masked"):
        table.clients[0].masker()


FIVE = Parameters(4, 4, 4, 0, 5, 4)


def lists(of: Binding, survivors: set[int], dropped: set[int]) -> bytes:
    return m.write_lists(of, m.Lists(frozenset(survivors), frozenset(dropped)))


LISTS: dict[str, tuple[Callable[[Binding], bytes], str]] = {
    "overlap": (
        lambda b: lists(b, {0, 1, 2, 3}, {3, 4}),
        "'site-3' as both answered and dropped",
    ),
    "too few": (lambda b: lists(b, {0, 1, 2}, {3, 4}), "3 survivors are too few"),
    "unknown": (lambda b: lists(b, {0, 1, 2, 3, 6}, {4}), "not among the 5 of the round"),
    "itself": (lambda b: lists(b, {1, 2, 3, 4}, {0}), "this site dropped out"),
    "forgotten": (lambda b: lists(b, {0, 1, 2, 3}, set()), "'site-4' dealt shares to this site"),
    "longer": (lambda b: lists(b, {0, 1, 2, 3}, {4}) + b"\0", "not two lists"),
    "stale": (lambda b: lists(replace(b, round=2), {0, 1, 2, 3}, {4}), "stale or replayed"),
    "another phase": (lambda b: m.ADVERTS + b.digest, "is not the message expected now"),
}


@pytest.mark.parametrize("name", LISTS)
def test_unsound_lists_are_not_signed_and_reveal_nothing(name: str) -> None:
    made, why = LISTS[name]
    table = Table.of(5, FIVE)
    good = table.to_agree()
    with pytest.raises(SiteError, match=why):
        table.clients[0].agree(made(table.binding))
    table.server.agree(0, table.clients[0].agree(good))


def test_every_question_is_answered_once() -> None:
    table = Table.of(5, FIVE)
    asked = table.to_agree()
    said = table.clients[0].agree(asked)
    assert table.clients[0].agree(asked) == said
    with pytest.raises(SiteError, match="answered before"):
        table.clients[0].agree(lists(table.binding, {0, 1, 2, 3}, {4}))
    table.server.agree(0, said)
    table.agree(range(5), range(1, 5))
    request = table.server.request(0)
    answer = table.clients[0].unmask(request)
    assert table.clients[0].unmask(request) == answer  # the line lost it: word for word the same
    with pytest.raises(SiteError, match="answered before"):
        table.clients[0].unmask(request[:-1])
    with pytest.raises(SiteError, match="answered before"):
        table.clients[1].confirm(asked)


def test_a_site_that_dealt_no_shares_cannot_be_asked_about() -> None:
    table = Table.of(5, FIVE)
    table.advertise(range(5))
    table.share(range(4))
    table.confirm(range(4))
    table.masked(range(4))
    with pytest.raises(SiteError, match="'site-4' dealt no shares"):
        table.clients[0].agree(lists(table.binding, {0, 1, 2, 3}, {4}))


def test_questions_out_of_turn_are_refused() -> None:
    site = Table.of(4).clients[0]
    for ask in (site.share, site.confirm, site.agree, site.unmask):
        with pytest.raises(SiteError, match="refused"):
            ask(b"")
    with pytest.raises(SiteError, match="refused"):
        site.masker()


# What the coordinator refuses -------------------------------------------------------------


def test_the_coordinator_names_a_site_that_sends_nonsense() -> None:
    table = Table.of(4)
    with pytest.raises(SiteError, match=r"'site-1'.*the keys of another site"):
        table.server.advert(1, table.clients[0].advertise())
    with pytest.raises(SiteError, match=r"'site-0'.*not signed"):
        table.server.advert(0, flip(table.clients[0].advertise(), -1))
    table.advertise(range(4))
    shares = table.clients[0].share(table.server.adverts(0))
    with pytest.raises(SiteError, match=r"'site-0'.*not for its neighbours"):
        table.server.share(0, shares[: len(shares) - m.NUMBER - m.SEALED])
    with pytest.raises(SiteError, match="not a whole number of records"):
        table.server.share(0, shares + b"x")
    site = (9).to_bytes(4, "big")
    with pytest.raises(SiteError, match="among 4 sites"):
        table.server.share(0, shares[: m.MARK + m.DIGEST] + site + bytes(m.SEALED))


def unmasked(liars: set[int]) -> tuple[Table, Residues]:
    """A round in which the share of the last site's secret that `liars` reveal is wrong."""
    table = Table.of(4)
    table.advertise(range(4))
    table.share(range(4))
    table.confirm(range(4))
    total = table.masked(range(4))
    table.server.lists(range(4))
    table.agree(range(4), range(4))
    for n in range(4):
        answer = table.clients[n].unmask(table.server.request(n))
        # In different places, so that what is wrong does not cancel.
        table.server.answer(n, flip(answer, -1 - n) if n in liars else answer)
    table.server.unmask(total)
    return table, total


def test_one_wrong_share_is_left_out_and_noted() -> None:
    table, total = unmasked({0})
    assert np.array_equal(total, table.plain(range(4)))
    assert table.server.conflicts == {(3, 0)}
    assert list(table.server.doubts(0.0)) == ["site-0", "site-3"]
    assert list(unmasked({3})[0].server.doubts(0.0)) == []  # not needed, so not looked at


def test_too_many_wrong_shares_are_noticed_before_the_sum_is_used() -> None:
    with pytest.raises(
        SiteError, match="the shares of site 'site-3' do not reconstruct its secret"
    ):
        unmasked({0, 1})


def test_a_share_of_the_other_secret_is_refused() -> None:
    table = Table.of(4)
    answer = table.clients[0].unmask(table.to_unmask())
    kind = m.MARK + m.DIGEST + m.NUMBER
    with pytest.raises(SiteError, match="shares that it was not asked for"):
        table.server.answer(0, flip(answer, kind))


# The binding ------------------------------------------------------------------------------


def test_a_binding_is_read_as_it_was_written() -> None:
    made = binding(4, Parameters(3, 3, 3))
    found = Binding.read(made.data)
    assert found == made
    assert found.digest == made.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "other"},
        {"program": "other"},
        {"round": 2},
        {"serial": 2},
        {"order": "other"},
        {"accepted": (0, 0, 1, 0)},
        {"roster": binding(5, Parameters(3, 3, 3)).roster},
        {"parameters": Parameters(3, 2, 3)},
        {"quantiser": {"bits": 19}},
    ],
)
def test_whatever_changes_makes_another_round(changes: dict[str, object]) -> None:
    made = binding(4, Parameters(3, 3, 3))
    assert replace(made, **changes).digest != made.digest  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 10**5,
        binding(3, Parameters(2, 2, 2)).data + b" ",
        binding(3, Parameters(2, 2, 2)).data.replace(b'"round":1', b'"round":true'),
        binding(3, Parameters(2, 2, 2)).data.replace(b'"round":1', b'"round":-1'),
        binding(3, Parameters(2, 2, 2)).data.replace(b"site-1", b"site-0"),
        binding(3, Parameters(2, 2, 2)).data.replace(b'"run":"run"', b'"run":1'),
        binding(3, Parameters(2, 2, 2)).data.replace(b'"program":"program"', b'"program":1'),
        binding(3, Parameters(2, 2, 2)).data.replace(
            IDENTITIES[1].public.hex().encode(), IDENTITIES[0].public.hex().upper().encode()
        ),
        binding(3, Parameters(2, 2, 2)).data.replace(b'{"bits":20}', b"20"),
    ],
)
def test_what_is_no_binding_is_refused(data: bytes) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        Binding.read(data)
