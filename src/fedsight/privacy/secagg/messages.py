"""The messages of a round of secure aggregation, in a canonical binary form.

Every message starts with the mark of its phase and the digest of the round's binding, so a message
of another round, run or model is rejected at its first bytes. Records of one fixed length follow,
sorted by site; a wrong length or a duplicate site is rejected before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg.graph import Graph, Parameters, drawn
from fedsight.privacy.secagg.keys import NONCE, PUBLIC, SIGNATURE, TAG, is_public
from fedsight.privacy.secagg.shares import SHARE

ADVERTISE, ADVERTS, SHARES, INBOX, CONFIRM = b"1a", b"1b", b"2a", b"2b", b"3a"
COMPLAIN = b"3b"  # instead of CONFIRM
LISTS, AGREE, UNMASK, ANSWER = b"4b", b"5a", b"5b", b"6a"
MARK, DIGEST, NUMBER = 2, 32, 4  # bytes of a phase's mark, a digest, a site's number
KEYS = 2 * PUBLIC + DIGEST  # an advert without its signature: two keys, a commitment
ADVERT = KEYS + SIGNATURE
PAIR = 2 * SHARE  # for one neighbour: a share of the self-seed and one of the mask key
SEALED = NONCE + PAIR + TAG
KIND = 1  # byte of an answer that says which secret the share belongs to
LONGEST = 16 << 20  # bytes of a binding
MOST_SITES = 100_000
_COORDINATOR = "the coordinator"
_CURE = "run the same FedSight version everywhere; if that is so, somebody alters messages"


@dataclass(frozen=True)
class Binding:
    """The context of a round; every key is signed together with its digest.

    `program` is the fingerprint of the program that all its sites run, and `package` the SHA-256 of
    the FedSight code that they run it with (empty on one machine). `serial` distinguishes attempts
    at the same round and only increases. `order` is the SHA-256 of all vectors that
    training starts from. `roster` holds the sites' names and Ed25519 public keys (hex), by number,
    and `accepted` the last round in which each one's reply counted, on which its memory depends.
    """

    run: str
    program: str
    package: str
    round: int
    serial: int
    order: str
    roster: tuple[tuple[str, str], ...]
    accepted: tuple[int, ...]
    parameters: Parameters
    quantiser: Mapping[str, Any]

    @cached_property
    def data(self) -> bytes:
        """The canonical form that is sent and signed."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of `data`."""
        return hashlib.sha256(b"fedsight secure aggregation 4\0" + self.data).digest()

    @cached_property
    def graph(self) -> Graph:
        """The graph of neighbours, drawn from the digest."""
        return Graph(len(self.roster), self.parameters.neighbours, self.digest)

    @cached_property
    def committee(self) -> frozenset[int]:
        """The sites whose signatures certify lists of survivors, drawn from the digest."""
        members, sites = self.parameters.committee, len(self.roster)
        if members >= sites:
            return frozenset(range(sites))
        return frozenset(drawn(sites, b"fedsight committee\0" + self.digest)[:members])

    def name(self, site: int) -> str:
        """The name of site number `site`."""
        return self.roster[site][0]

    def identity(self, site: int) -> bytes:
        """The public key of site number `site`."""
        return bytes.fromhex(self.roster[site][1])

    @classmethod
    def read(cls, data: bytes) -> Binding:
        """Parse received bytes; SiteError unless they are a binding in canonical form."""
        try:
            if len(data) > LONGEST:
                raise ValueError("too long")
            table = json.loads(data)
            roster = tuple((str(name), str(key)) for name, key in table["roster"])
            parameters, accepted = Parameters(**table["parameters"]), tuple(table["accepted"])
            known = {"roster": roster, "parameters": parameters, "accepted": accepted}
            found = cls(**{**table, **known})
            counts = (found.round, found.serial, *accepted, *asdict(parameters).values())
            if any(type(count) is not int or not 0 <= count < 1 << 53 for count in counts):
                raise ValueError("expected a whole number")
            texts = (found.run, found.program, found.package, found.order)
            if any(type(text) is not str for text in texts):
                raise TypeError("expected a string")
            if not isinstance(found.quantiser, dict) or not 1 <= len(roster) <= MOST_SITES:
                raise ValueError("the quantiser or the sites are missing")
            if len(accepted) != len(roster):
                raise ValueError("it does not say for each site which reply counted last")
            names, keys = zip(*roster, strict=True)
            if len(set(names)) < len(names) or len(set(keys)) < len(keys):
                raise ValueError("a site is listed twice")
            if not all(map(is_public, keys)):
                raise ValueError("a public key is not 64 hex digits")
            if found.data != data:
                raise ValueError("it is not in canonical form")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            cause = f"the coordinator's description of the round cannot be read: {error}"
            raise SiteError(cause[:300], _CURE) from None
        return found


def write(mark: bytes, binding: Binding, records: Mapping[int, bytes]) -> bytes:
    """A message: the mark, the digest, and one record per site."""
    return mark + binding.digest + _joined(records)


def _joined(records: Mapping[int, bytes]) -> bytes:
    return b"".join(site.to_bytes(NUMBER, "big") + records[site] for site in sorted(records))


def read(
    mark: bytes, binding: Binding, message: bytes, length: int, sender: str
) -> dict[int, bytes]:
    """The records of a message, by site; SiteError naming the sender if it is malformed."""
    return _records(binding, _body(mark, binding, message, sender), length, sender)


def _records(binding: Binding, body: bytes, length: int, sender: str) -> dict[int, bytes]:
    step = NUMBER + length
    sites = len(binding.roster)
    if len(body) % step or len(body) // step > sites:
        raise _odd(sender, f"{len(body):,} bytes are not a whole number of records")
    records: dict[int, bytes] = {}
    last = -1
    for start in range(0, len(body), step):
        site = int.from_bytes(body[start : start + NUMBER], "big")
        if site >= sites:
            raise _odd(sender, f"there is no site number {site} among {sites} sites")
        if site <= last:
            raise _odd(sender, f"site '{binding.name(site)}' appears twice or out of order")
        records[site] = body[start + NUMBER : start + step]
        last = site
    return records


@dataclass(frozen=True)
class Lists:
    """The sites whose updates were added, and those that dealt shares and then dropped out."""

    survivors: frozenset[int]
    dropped: frozenset[int]

    def data(self, sites: int) -> bytes:
        """A bit set over all `sites` for each list."""
        return bit_set(self.survivors, sites) + bit_set(self.dropped, sites)

    def digest(self, sites: int) -> bytes:
        """SHA-256 of `data`."""
        return hashlib.sha256(self.data(sites)).digest()


@dataclass(frozen=True)
class Proof:
    """Signatures that let a site reveal shares: of the lists, and of its neighbours' inboxes."""

    agreements: Mapping[int, bytes]
    confirmations: Mapping[int, bytes]


def bit_set(group: Set[int], sites: int) -> bytes:
    """Which of `sites` sites belong to `group`, one bit each."""
    return sum(1 << site for site in group).to_bytes((sites + 7) // 8, "little")


def write_lists(binding: Binding, lists: Lists) -> bytes:
    """The request to sign the lists."""
    return LISTS + binding.digest + lists.data(len(binding.roster))


def read_lists(binding: Binding, message: bytes) -> Lists:
    """Survivors and dropped sites; SiteError for an unknown site or one in both lists."""
    return _lists(binding, _body(LISTS, binding, message, _COORDINATOR))


def write_unmask(binding: Binding, lists: Lists, proof: Proof) -> bytes:
    """The request to unmask: the lists, and what proves that everybody was told the same."""
    signatures = [_joined(group) for group in (proof.agreements, proof.confirmations)]
    return UNMASK + binding.digest + lists.data(len(binding.roster)) + b"".join(signatures)


def read_unmask(binding: Binding, message: bytes) -> tuple[Lists, Proof]:
    """The lists and their proof, unchecked; SiteError if the message is malformed.

    The first `signatures` records are those of the lists.
    """
    body = _body(UNMASK, binding, message, _COORDINATOR)
    start = 2 * ((len(binding.roster) + 7) // 8)
    stop = start + binding.parameters.signatures * (NUMBER + SIGNATURE)
    agreements = _records(binding, body[start:stop], SIGNATURE, _COORDINATOR)
    confirmations = _records(binding, body[stop:], SIGNATURE, _COORDINATOR)
    return _lists(binding, body[:start]), Proof(agreements, confirmations)


def _lists(binding: Binding, body: bytes) -> Lists:
    sites = len(binding.roster)
    length = (sites + 7) // 8
    if len(body) != 2 * length:
        raise _odd(_COORDINATOR, f"{len(body):,} bytes are not two lists over {sites} sites")
    masks = [int.from_bytes(part, "little") for part in (body[:length], body[length:])]
    if max(masks) >> sites:
        raise _odd(_COORDINATOR, f"it names a site that is not among the {sites} of the round")
    groups = [frozenset(s for s in range(sites) if mask >> s & 1) for mask in masks]
    lists = Lists(*groups)
    if both := lists.survivors & lists.dropped:
        twice = binding.name(min(both))
        raise _odd(_COORDINATOR, f"it lists site '{twice}' as both answered and dropped")
    return lists


def _body(mark: bytes, binding: Binding, message: bytes, sender: str) -> bytes:
    if message[:MARK] != mark:
        raise _odd(sender, "it is not the message expected now")
    if message[MARK : MARK + DIGEST] != binding.digest:
        raise _odd(
            sender,
            f"it does not belong to this attempt at round {binding.round}: stale or replayed",
        )
    return message[MARK + DIGEST :]


def _odd(sender: str, why: str) -> SiteError:
    return SiteError(f"rejected a secure aggregation message from {sender}: {why}", _CURE)
