"""A malicious site ruins a round of secure aggregation for others; ours leaves out that site only.

An X25519 key of small order agrees on zero with everybody, and libraries refuse it. A site that
shows one, properly signed, so makes every neighbour fail: they drop out, and it looks like their
fault. At the end of a round, it answers with something that nobody has foreseen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite
from masked_round import faulty_round
from site_services import Alter

from fedsight.core.errors import SiteError
from fedsight.engines.base import Outcome
from fedsight.privacy.secagg import client, server
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import sign_part
from fedsight.privacy.secagg.keys import PUBLIC, Identity

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c", "d")
MALLORY = "d"


def round_of(attack: Attack, root: Path, alter: Alter) -> Outcome:
    """A round in which the answers of one site are altered."""
    secure = {"name": "secagg", "dropout": 0.25}
    return faulty_round(attack, root, NAMES, alter, secure=secure, rounds={"quorum": 3})


def small_order(root: Path) -> Alter:
    """Replaces the keys of the site by zeros, and signs that."""

    def alter(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind == "advertise":
            head, digest = m.MARK + m.DIGEST, body[m.MARK : m.MARK + m.DIGEST]
            number = int.from_bytes(body[head : head + m.NUMBER], "big")
            keys = bytes(2 * PUBLIC) + bytes(m.DIGEST)
            identity = Identity.at(root / MALLORY / "identity.key")
            signature = identity.sign(sign_part(digest, number, keys))
            body = body[: head + m.NUMBER] + keys + signature
        return text, body

    return alter


def test_a_key_of_small_order_ends_a_round_where_it_is_passed_on(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (client, server):
        monkeypatch.setattr(module, "is_usable", lambda _: True)
    with pytest.raises(SiteError, match=r"only 1 of 4 sites dealt their shares"):
        round_of(attack, tmp_path, small_order(tmp_path))


def test_ours_leaves_out_the_site_that_shows_it(attack: Attack, tmp_path: Path) -> None:
    outcome = round_of(attack, tmp_path, small_order(tmp_path))
    assert sorted(one.site for one in outcome.accepted) == ["a", "b", "c"]
    assert "nobody can agree on a secret with its keys" in outcome.rejected[MALLORY]


def test_a_site_names_the_neighbour_whose_key_it_cannot_use(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a coordinator passes it on all the same."""
    monkeypatch.setattr(server, "is_usable", lambda _: True)
    with pytest.raises(SiteError, match=r"nobody can agree on a secret with the keys of 'd'"):
        round_of(attack, tmp_path, small_order(tmp_path))


@pytest.mark.parametrize("kind", ["agree", "unmask"])
@pytest.mark.parametrize("how", ["junk", "empty", "not bytes", "not JSON", "raises"])
def test_an_unforeseen_answer_at_the_end_costs_its_site_only(
    attack: Attack, tmp_path: Path, kind: str, how: str
) -> None:
    def alter(asked: str, header: dict[str, Any], text: str, body: bytes) -> tuple[Any, Any]:
        if asked != kind:
            return text, body
        if how == "raises":
            raise RuntimeError("nobody has foreseen this")
        found = {"junk": (text, b"\xff" * 999), "empty": (text, b""), "not bytes": (text, 7)}
        return found.get(how, ("{", body))

    outcome = round_of(attack, tmp_path, alter)
    assert len(outcome.accepted) == 4, "its update is in the sum: the others unmask it"
    assert outcome.total.plain()["delta"].isfinite().all()


def test_an_unforeseen_failure_in_reading_an_answer_costs_its_site_only(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = server.SecAggServer.answer

    def answer(self: server.SecAggServer, site: int, message: bytes) -> None:
        if self.binding.name(site) == MALLORY:
            raise MemoryError
        original(self, site, message)

    monkeypatch.setattr(server.SecAggServer, "answer", answer)
    outcome = round_of(attack, tmp_path, lambda kind, header, text, body: (text, body))
    assert len(outcome.accepted) == 4
