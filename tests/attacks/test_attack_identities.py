"""One site whose keys make all others refuse the round, so that they seem to be at fault.

A malicious site shows another site's public key as its own (every roster holds it), the same key
written with spaces, another key than before, or a point of small order, with which nobody can agree
on a secret. Every honest site then refused the round or failed in it, and only the malicious one
was left. No quorum helps against that, and the error named an honest site.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import site_services
from site_services import FaultyLink, Places

from fedsight.core.errors import DeployError, SiteError
from fedsight.core.types import Order
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.server.job import _recogniser
from fedsight.deploy.site import peer_keys
from fedsight.deploy.site.peer_keys import PeerKeys
from fedsight.engines.base import Outcome, collect
from fedsight.engines.remote import key_exchange
from fedsight.engines.remote.conversation import Talk
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.privacy.secagg import client, keys, server
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import sign_part
from fedsight.privacy.secagg.keys import Identity, KeyPair, identity_part

BAD = "south"
SECURE = {"name": "secagg", "split_view": False, "corrupt": 0.0, "dropout": 0.3}
Alter = Callable[[str, dict[str, Any], str, bytes], tuple[Any, Any]]


def key_of(places: Places, site: str) -> Identity:
    return Identity.at(places.root / site / "identity.key")


def train(places: Places, images: Path, alter: Alter) -> Outcome:
    """The first round of a run that goes on with two of three sites."""
    program = site_services.program(images, rounds={"quorum": 2}, secure=SECURE)
    federation, link = places.meet(program)
    coordinator = FederationFolder(places.root, Invitation("test", "localhost", 1, ""))
    record = RunRecord({}, {}, lambda: 0, id=places.run, recognise=_recogniser(coordinator))
    engine = RemoteEngine(federation, FaultyLink(link, BAD, alter), record)
    order = Order(1, federation.initial[federation.layout.travelling])
    return collect(engine, order, [0, 1, 2])


def shows(key: str, signer: Identity) -> Alter:
    """A site that shows `key`, with the proof that `signer` can make."""

    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind != "identify":
            return text, data
        challenge = bytes.fromhex(header.get("challenge", "00" * 32))
        proof = signer.sign(identity_part(BAD, challenge)).hex()
        return json.dumps({"identity": key, "proof": proof}), data

    return alter


def believing(self: Any, talk: Talk) -> None:
    """As it was: whatever a site shows is its key."""
    answer, _ = talk.ask("identify", {"challenge": "00" * 32})
    assert len(bytes.fromhex(answer["identity"])) == 32
    self._identities[talk.site] = answer["identity"]


def spaced(key: str) -> str:
    return " ".join(key[at : at + 2] for at in range(0, 64, 2))


def shown_keys(places: Places) -> dict[str, Alter]:
    """What the malicious site may show, once the others know its key and it theirs."""
    own, other = key_of(places, BAD), Identity.fresh()
    return {
        "another site's": shows(key_of(places, "north").public.hex(), own),
        "its own, with spaces": shows(spaced(own.public.hex()), own),
        "another one than before": shows(other.public.hex(), other),
    }


@pytest.mark.parametrize("kind", ["another site's", "its own, with spaces", "another one"])
def test_an_identity_that_nobody_checks_ends_the_round_in_another_ones_name(
    places: Places, site_images: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(places, site_images, lambda *answer: answer[2:])
    alter = next(one for name, one in shown_keys(places).items() if name.startswith(kind))
    with pytest.raises(SiteError, match=rf"dropped out: site '{BAD}' "):
        train(places, site_images, alter)
    monkeypatch.setattr(key_exchange.Exchange, "_identify", believing)
    monkeypatch.setattr(m, "is_public", lambda key: True)
    with pytest.raises(SiteError, match=r"only [01] of 3 sites sent their keys"):
        train(places, site_images, alter)


def test_one_key_under_two_names_is_one_too_many(places: Places, site_images: Path) -> None:
    """Two sites of one owner, say: the second one is left out, and the others go on without it."""
    path = places.root / BAD / "identity.key"
    train(places, site_images, lambda *answer: answer[2:])
    (places.root / "peers.json").unlink()  # or the second one would be refused for another reason
    own = path.read_bytes()
    path.write_bytes((places.root / "north" / "identity.key").read_bytes())
    try:
        with pytest.raises(SiteError, match=r"has the identity key of site"):
            train(places, site_images, lambda *answer: answer[2:])
    finally:
        path.write_bytes(own)
        (places.root / "peers.json").unlink()


@pytest.mark.parametrize("which", [0, 1], ids=["for shares", "for masks"])
def test_a_key_that_nobody_can_use_rejects_the_site_that_sent_it(
    places: Places, site_images: Path, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind != "advertise":
            return text, data
        digest, number = data[2:34], int.from_bytes(data[34:38], "big")
        sent = bytearray(data[38 : 38 + m.KEYS])
        sent[32 * which : 32 * which + 32] = bytes(32)  # a point of order 1
        signature = key_of(places, BAD).sign(sign_part(digest, number, bytes(sent)))
        return text, data[:38] + bytes(sent) + signature

    outcome = train(places, site_images, alter)
    assert sorted(one.site for one in outcome.accepted) == ["north", "west"]
    assert "nobody can agree" in outcome.rejected[BAD]
    for module in (server, client):
        monkeypatch.setattr(module, "is_usable", lambda key: True)
    with pytest.raises(SiteError, match=r"only 1 of 3 .*: site '(north|west)'"):
        train(places, site_images, alter)


def test_points_of_small_order_are_no_keys() -> None:
    """All that X25519 knows (RFC 7748, section 6.1; Langley et al.), besides their doubles."""
    order_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
    for point in ("00" * 32, "01" + "00" * 31, order_8, "ec" + "ff" * 30 + "7f"):
        assert not keys.is_usable(bytes.fromhex(point))
    assert keys.is_usable(KeyPair.fresh().public)


class OfAnotherJob(PeerKeys):
    """Records keys in a job beside the one that records, after `pause`, before that one writes."""

    def __init__(self, home: Path, pause: Callable[[], None]) -> None:
        super().__init__(home)
        self._pause = pause

    def _read(self) -> dict[str, Any]:
        known = super()._read()
        self._pause()
        return known


def is_lost(home: Path) -> bool:
    """Whether a key that one job recorded is lost to another job that records at the same time, so
    that the coordinator may show another under its name from now on."""
    real, other, false = (Identity.fresh().public.hex() for _ in range(3))
    refused: list[DeployError] = []

    def meanwhile() -> None:
        try:
            PeerKeys(home).record([("north", real)])
        except DeployError as error:
            refused.append(error)

    OfAnotherJob(home, meanwhile).record([("west", other)])
    if refused:  # "try again"
        PeerKeys(home).record([("north", real)])
    try:
        PeerKeys(home).record([("north", false)])
    except DeployError:
        return False
    return True


def test_a_key_is_lost_where_two_jobs_record_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_keys.locks, "hold", lambda *_: nullcontext())
    assert is_lost(tmp_path)


def test_ours_record_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_keys, "LOCK_TIMEOUT", 0.0)
    assert not is_lost(tmp_path)
