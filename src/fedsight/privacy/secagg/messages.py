"""The messages of a round of secure aggregation, in a canonical binary form.

Every message starts with the mark of its phase and the digest of the round's binding, so a message
of another round, run or model is rejected at its first bytes. Records of one fixed length follow,
sorted by site; a wrong length or a duplicate site is rejected before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg.graph import Graph, Parameters
from fedsight.privacy.secagg.keys import NONCE, PUBLIC, SIGNATURE, TAG
from fedsight.privacy.secagg.shares import SHARE

ADVERTISE, ADVERTS, SHARES, INBOX, UNMASK, ANSWER = b"1a", b"1b", b"2a", b"2b", b"4a", b"4b"
MARK, DIGEST, NUMBER = 2, 32, 4  # bytes of a phase's mark, a digest, a site's number
KEYS = 2 * PUBLIC + DIGEST  # an advert without its signature: two keys, a commitment
ADVERT = KEYS + SIGNATURE
PAIR = 2 * SHARE  # for one neighbour: a share of the self-seed and one of the mask key
SEALED = NONCE + PAIR + TAG
KIND = 1  # byte of an answer that says which secret the share belongs to
LONGEST = 16 << 20  # bytes of a binding
MOST_SITES = 100_000
_CURE = "run the same FedSight version everywhere; if that is so, somebody alters messages"


@dataclass(frozen=True)
class Binding:
    """The context of a round; every key is signed together with its digest.

    `serial` distinguishes attempts at the same round and only increases. `model` is the SHA-256 of
    the model that training starts from. `roster` holds the sites' names and Ed25519 public keys
    (hex), by number.
    """

    run: str
    round: int
    serial: int
    model: str
    roster: tuple[tuple[str, str], ...]
    parameters: Parameters
    quantiser: Mapping[str, Any]

    @cached_property
    def data(self) -> bytes:
        """The canonical form that is sent and signed."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of `data`."""
        return hashlib.sha256(b"fedsight secure aggregation 1\0" + self.data).digest()

    @cached_property
    def graph(self) -> Graph:
        """The graph of neighbours, drawn from the digest."""
        return Graph(len(self.roster), self.parameters.neighbours, self.digest)

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
            found = cls(
                **{**table, "roster": roster, "parameters": Parameters(**table["parameters"])}
            )
            counts = (found.round, found.serial, *asdict(found.parameters).values())
            if any(type(count) is not int or not 0 <= count < 1 << 53 for count in counts):
                raise ValueError("expected a whole number")
            if type(found.run) is not str or type(found.model) is not str:
                raise TypeError("expected a string")
            if not isinstance(found.quantiser, dict) or not 1 <= len(roster) <= MOST_SITES:
                raise ValueError("the quantiser or the sites are missing")
            names, keys = zip(*roster, strict=True)
            if len(set(names)) < len(names) or len(set(keys)) < len(keys):
                raise ValueError("a site is listed twice")
            if any(len(bytes.fromhex(key)) != PUBLIC for key in keys):
                raise ValueError("a public key has the wrong length")
            if found.data != data:
                raise ValueError("it is not in canonical form")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            cause = f"the coordinator's description of the round cannot be read: {error}"
            raise SiteError(cause[:300], _CURE) from None
        return found


def write(mark: bytes, binding: Binding, records: Mapping[int, bytes]) -> bytes:
    """A message: the mark, the digest, and one record per site."""
    body = b"".join(site.to_bytes(NUMBER, "big") + records[site] for site in sorted(records))
    return mark + binding.digest + body


def read(
    mark: bytes, binding: Binding, message: bytes, length: int, sender: str
) -> dict[int, bytes]:
    """The records of a message, by site; SiteError naming the sender if it is malformed."""
    body = _body(mark, binding, message, sender)
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


def write_lists(binding: Binding, survivors: set[int], dropped: set[int]) -> bytes:
    """The request to unmask: a bit set of the survivors, then one of the sites that dropped out."""
    length = (len(binding.roster) + 7) // 8
    bits = [
        sum(1 << site for site in group).to_bytes(length, "little")
        for group in (survivors, dropped)
    ]
    return UNMASK + binding.digest + bits[0] + bits[1]


def read_lists(binding: Binding, message: bytes) -> tuple[set[int], set[int]]:
    """Survivors and dropped sites; SiteError for an unknown site or one in both lists."""
    sender = "the coordinator"
    body = _body(UNMASK, binding, message, sender)
    sites = len(binding.roster)
    length = (sites + 7) // 8
    if len(body) != 2 * length:
        raise _odd(sender, f"{len(body):,} bytes are not two lists over {sites} sites")
    masks = [int.from_bytes(part, "little") for part in (body[:length], body[length:])]
    if max(masks) >> sites:
        raise _odd(sender, f"it names a site that is not among the {sites} of the round")
    survivors, dropped = ({s for s in range(sites) if mask >> s & 1} for mask in masks)
    if both := survivors & dropped:
        raise _odd(
            sender, f"it lists site '{binding.name(min(both))}' as both answered and dropped"
        )
    return survivors, dropped


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
