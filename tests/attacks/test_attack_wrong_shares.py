"""A malicious site spoils a round of secure aggregation by shares that are wrong.

With one wrong share no secret came out, and the round ended in the name of the site whose secret it
was. It may seal what nobody can open: the receivers dropped out, and it stayed in the sum. So it
silenced whom it liked, and the others seemed to be at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite
from hypothesis import given
from hypothesis import strategies as st
from masked_round import faulty_round
from site_services import Alter

from fedsight.core.errors import SiteError
from fedsight.engines.base import Outcome
from fedsight.engines.remote import key_exchange
from fedsight.privacy.secagg import client, server
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.conflicts import left_out, suspects
from fedsight.privacy.secagg.graph import colluding
from fedsight.privacy.secagg.shares import SHARE, split
from fedsight.privacy.secagg.wrong_shares import recover
from fedsight.privacy.secure import Secure

Attack = Callable[..., AttackedSite]
NAMES = tuple("abcdef")
MALLORY = NAMES[-1]
HEAD = m.MARK + m.DIGEST


def round_of(attack: Attack, root: Path, alter: Alter) -> Outcome:
    """A round of six sites, two of which may drop out."""
    secure = {"name": "secagg", "dropout": 0.25}
    return faulty_round(attack, root, NAMES, alter, secure=secure, rounds={"quorum": 4})


def changed(kind: str, length: int, about: tuple[int, ...]) -> Alter:
    """Flips a bit in each record about the sites `about` of the answers to `kind`."""

    def alter(asked: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if asked != kind:
            return text, body
        found = bytearray(body)
        for start in range(HEAD, len(found), m.NUMBER + length):
            if int.from_bytes(found[start : start + m.NUMBER], "big") in about:
                found[start + m.NUMBER + length - 1] ^= 1
        return text, bytes(found)

    return alter


def sites_in(outcome: Outcome) -> str:
    return "".join(sorted(one.site for one in outcome.accepted))


# -- shares that are revealed ----------------------------------------------------------------------


def lies(*about: int) -> Alter:
    return changed("unmask", m.KIND + SHARE, about)


def test_one_wrong_share_ends_a_round_where_it_is_not_left_out(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "join", lambda shares, least: naive_join(shares, least))
    monkeypatch.setattr(server, "recover", lambda *_: None)
    with pytest.raises(SiteError, match="the shares of site 'a' do not reconstruct its secret"):
        round_of(attack, tmp_path, lies(0))


def naive_join(shares: dict[int, bytes], least: int) -> bytes:
    """Of the last shares, so that the wrong one is among them."""
    from fedsight.privacy.secagg.shares import join

    return join(dict(sorted(shares.items())[-least:]), least)


def test_ours_leaves_it_out_and_names_both_that_may_be_at_fault(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "join", naive_join)
    outcome = round_of(attack, tmp_path, lies(0))
    assert sites_in(outcome) == "abcdef"
    assert outcome.total.plain()["delta"].abs().max() < 6
    assert sorted(outcome.doubts) == ["a", MALLORY]
    assert "contradict each other about shares" in outcome.doubts["a"]


def test_a_site_that_lies_about_several_is_named_alone(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "join", naive_join)
    outcome = round_of(attack, tmp_path, lies(0, 1, 2))
    assert sites_in(outcome) == "abcdef"
    assert list(outcome.doubts) == [MALLORY]


@given(st.integers(2, 24), st.data())
def test_wrong_shares_are_found_as_long_as_their_number_is_half_of_the_spare_ones(
    count: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, count))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    shares = split(secret, range(count), threshold)
    most = (count - threshold + 1) // 2
    wrong = data.draw(st.sets(st.integers(0, count - 1), max_size=most))
    for holder in wrong:
        other = data.draw(st.binary(min_size=SHARE, max_size=SHARE))
        shares[holder] = other if other != shares[holder] else bytes([1, *other[1:]])
    assert recover(shares, threshold, secret.__eq__) == (secret, wrong)


def test_a_secret_that_was_never_dealt_is_not_found() -> None:
    shares = split(bytes(32), range(7), 4)
    assert recover(shares, 4, b"\1".__eq__) is None
    wrong = dict.fromkeys((0, 1, 2), bytes(33))
    assert recover({**shares, **wrong}, 4, bytes(32).__eq__) is None


# -- shares that are sealed ------------------------------------------------------------------------


def seals(*about: int) -> Alter:
    return changed("share", m.SEALED, about)


def naive_confirm(self: client.SecAggClient, inbox: bytes) -> bytes:
    """As it was: a site that cannot open shares refuses, and has dropped out."""
    found = m.read(m.INBOX, self.binding, inbox, m.SEALED, "the coordinator")
    for site, sealed in found.items():
        if self._opened(site, sealed) is None:
            raise self._refuse(f"the shares that site '{self._name(site)}' sealed were altered")
    return real_confirm(self, inbox)


real_confirm = client.SecAggClient.confirm


def test_a_site_silences_another_that_cannot_open_its_shares(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.SecAggClient, "confirm", naive_confirm)
    outcome = round_of(attack, tmp_path, seals(0, 1))
    assert sites_in(outcome) == "cdef", "two honest sites are out, and the malicious one counts"
    assert "refused a request" in outcome.rejected["a"]


def test_in_ours_it_silences_only_itself(attack: Attack, tmp_path: Path) -> None:
    outcome = round_of(attack, tmp_path, seals(0, 1))
    assert sites_in(outcome) == "abcde"
    assert "contradict each other" in outcome.rejected[MALLORY]


def test_where_two_contradict_each_other_neither_counts(attack: Attack, tmp_path: Path) -> None:
    outcome = round_of(attack, tmp_path, seals(2))
    assert sites_in(outcome) == "abde"
    assert sorted(outcome.rejected) == ["c", MALLORY]
    assert "site 'f'" in outcome.rejected["c"]


@pytest.mark.parametrize("accused", [(0, 1, 2, 3, 4), (0, 3)])
def test_a_site_that_complains_about_others_is_left_out_itself(
    attack: Attack, tmp_path: Path, accused: tuple[int, ...]
) -> None:
    def alter(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind == "confirm":
            numbers = b"".join(one.to_bytes(m.NUMBER, "big") for one in accused)
            body = m.COMPLAIN + body[m.MARK : HEAD] + numbers
        return text, body

    outcome = round_of(attack, tmp_path, alter)
    assert sites_in(outcome) == "abcde"
    assert list(outcome.rejected) == [MALLORY]


@pytest.mark.parametrize("accused", [b"", (5).to_bytes(4, "big"), (9).to_bytes(4, "big"), b"x"])
def test_a_complaint_about_nobody_or_itself_is_its_own_fault(
    attack: Attack, tmp_path: Path, accused: bytes
) -> None:
    def alter(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        return text, m.COMPLAIN + body[m.MARK : HEAD] + accused if kind == "confirm" else body

    outcome = round_of(attack, tmp_path, alter)
    assert sites_in(outcome) == "abcde"
    assert list(outcome.rejected) == [MALLORY]


def test_the_owner_sees_which_shares_could_not_be_opened(attack: Attack, tmp_path: Path) -> None:
    sites = {}

    def remembered(name: str, *args: Any, **kwargs: Any) -> AttackedSite:
        sites[name] = attack(name, *args, **kwargs)
        return sites[name]

    round_of(remembered, tmp_path, seals(0))
    refused = [line for line in sites["a"].service._log.read() if line["event"] == "refused"]
    assert [line["what"] for line in refused] == ["confirm"]
    assert f"shares sealed by {MALLORY} were altered" in refused[0]["why"]


@given(st.integers(1, 4), st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40))
def test_nobody_is_suspected_without_a_liar_and_no_liar_gets_away(
    most: int, pairs: set[tuple[int, int]]
) -> None:
    """Sites 0 to `most` - 1 lie; every conflict has one of them in it."""
    conflicts = [pair for pair in pairs if min(pair) < most]
    found = suspects(conflicts, most)
    assert {end for pair in conflicts for end in pair if end < most} <= found
    for site in found:
        if site >= most:  # an honest one, beside the liar that contradicts it
            assert any(min(pair) in found for pair in conflicts if site in pair)


@given(st.integers(1, 4), st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40))
def test_no_more_honest_sites_are_left_out_than_liars(
    most: int, pairs: set[tuple[int, int]]
) -> None:
    conflicts = [pair for pair in pairs if min(pair) < most]
    found = left_out(conflicts, most)
    assert all(found & set(pair) for pair in conflicts), "nobody is contradicted any more"
    assert found <= suspects(conflicts, most)
    assert sum(site >= most for site in found) <= sum(site < most for site in found)


@pytest.mark.parametrize("sites", [20, 50, 100])
def test_a_site_takes_one_other_along_and_not_the_round(sites: int) -> None:
    """At the default rates it may contradict so many others that all of them together with itself
    are more than may drop out: without all suspects, a single site ended every round."""
    secure = Secure(name="secagg")
    needed, bad = secure.parameters(sites).survivors, colluding(sites, secure.corrupt)
    conflicts = [(0, other) for other in range(1, 1 + bad)]
    assert sites - len(suspects(conflicts, bad)) < needed
    assert sites - len(left_out(conflicts, bad)) >= needed
    assert left_out(conflicts, bad) == {0, 1}


def test_phases_begin_again_a_bounded_number_of_times(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = key_exchange.SecAggServer

    def counted(binding: m.Binding) -> server.SecAggServer:
        made.append(binding.serial)
        return original(binding)

    monkeypatch.setattr(key_exchange, "SecAggServer", counted)
    round_of(attack, tmp_path, seals(0, 1))
    assert len(made) == 2
