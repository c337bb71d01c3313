"""The coordinator's side of one round: it forwards messages and removes the masks from the sum.

It is trusted with nothing: the sites refuse whatever it could do wrong (`client.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import masks
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import KEY, SEED, mask_key, sign_part
from fedsight.privacy.secagg.consistency import confirming, inbox_part, lists_part, pick
from fedsight.privacy.secagg.keys import (
    PUBLIC,
    SIGNATURE,
    KeyPair,
    derive,
    is_usable,
    signed,
)
from fedsight.privacy.secagg.shares import SHARE, join


class SecAggServer:
    """One round.

    `advert`, `share`, `confirm`, `agree` and `answer` receive the messages of a site, by number.
    """

    def __init__(self, binding: m.Binding) -> None:
        self.binding = binding
        self._adverts: dict[int, bytes] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}  # dealer -> receiver -> sealed shares
        self._inbox: dict[int, set[int]] = {}  # whose shares each site received
        self._answers: dict[int, dict[int, bytes]] = {}  # subject -> sender -> record
        self._confirmed: dict[int, bytes] = {}  # signatures of the inboxes
        self._agreed: dict[int, bytes] = {}  # signatures of the lists
        self._lists = m.Lists(frozenset(), frozenset())

    # Phases 0 to 2: keys and shares -------------------------------------------------------

    def advert(self, site: int, message: bytes) -> None:
        """Store a site's keys; SiteError unless they are its own and signed for this round."""
        records = m.read(m.ADVERTISE, self.binding, message, m.ADVERT, self._sender(site))
        if set(records) != {site}:
            raise self._odd(site, "it advertises the keys of another site")
        advert = records[site]
        part = sign_part(self.binding.digest, site, advert[: m.KEYS])
        if not signed(self.binding.identity(site), advert[-SIGNATURE:], part):
            raise self._odd(site, "its keys are not signed by its identity")
        # A neighbour could not use them, and would have to refuse the round in this site's place.
        if not all(map(is_usable, (advert[:PUBLIC], advert[PUBLIC : 2 * PUBLIC]))):
            raise self._odd(site, "nobody can agree on a secret with its keys")
        self._adverts[site] = advert

    def adverts(self, site: int) -> bytes:
        """The adverts of a site's neighbours, as a message to it."""
        self._enough(self._adverts, "sent their keys")
        near = self.binding.graph.of(site)
        found = {other: self._adverts[other] for other in near if other in self._adverts}
        return m.write(m.ADVERTS, self.binding, found)

    def share(self, site: int, message: bytes) -> None:
        """Store the shares a site sealed; SiteError unless there is one for each neighbour."""
        records = m.read(m.SHARES, self.binding, message, m.SEALED, self._sender(site))
        due = {other for other in self.binding.graph.of(site) if other in self._adverts}
        if site not in self._adverts or set(records) != due:
            raise self._odd(site, "its shares are not for its neighbours")
        self._sealed[site] = records

    def inbox(self, site: int) -> bytes:
        """The shares sealed for a site, as a message to it. Call it after all shares arrived."""
        self._enough(self._sealed, "dealt their shares")
        near = self.binding.graph.of(site)
        found = {other: self._sealed[other][site] for other in near if other in self._sealed}
        self._inbox[site] = set(found)
        return m.write(m.INBOX, self.binding, found)

    def confirm(self, site: int, message: bytes) -> None:
        """Store a site's confirmation of its inbox; SiteError unless it signed what it was sent."""
        content = inbox_part(self.binding, site, self._inbox.get(site, set()))
        self._confirmed[site] = self._signature(m.CONFIRM, site, message, content)

    def check_ready(self) -> None:
        """Raise SiteError if so few sites confirmed that training would be in vain."""
        self._enough(self._confirmed, "confirmed their shares")

    # Phases 4 and 5: agreement and unmasking ----------------------------------------------

    def lists(self, survivors: Iterable[int]) -> bytes:
        """The request to `committee` to sign who survived: whose masked update was added."""
        left = frozenset(survivors)
        if not left <= set(self._confirmed):
            raise ValueError("a survivor never confirmed its neighbours' shares")
        self._enough(left, "sent an update")
        self._lists = m.Lists(left, frozenset(self._sealed) - left)
        return m.write_lists(self.binding, self._lists)

    @property
    def committee(self) -> list[int]:
        """The survivors that are asked to agree."""
        return sorted(self.binding.committee & self._lists.survivors)

    def agree(self, site: int, message: bytes) -> None:
        """Store a site's signature; SiteError unless it signed the lists."""
        content = lists_part(self.binding, self._lists)
        self._agreed[site] = self._signature(m.AGREE, site, message, content)

    def request(self, site: int) -> bytes:
        """The request to a survivor to unmask. Call it after all members of the committee agreed.

        Raises SiteError if too few of them did.
        """
        needed = self.binding.parameters.signatures
        if len(self._agreed) < needed:
            raise SiteError(
                f"only {len(self._agreed)} sites agreed on who survived round "
                f"{self.binding.round}, but {needed} signatures are needed",
                "check the rejected sites, or raise secure.dropout. The last checkpoint is intact",
            )
        due = confirming(self.binding, site, self._lists)
        proof = m.Proof(
            pick(self._agreed, needed), {other: self._confirmed[other] for other in due}
        )
        return m.write_unmask(self.binding, self._lists, proof)

    def answer(self, site: int, message: bytes) -> None:
        """Store a site's shares; SiteError unless they are the ones it was asked for."""
        length, graph = m.KIND + SHARE, self.binding.graph
        records = m.read(m.ANSWER, self.binding, message, length, self._sender(site))
        for other, record in records.items():
            due = SEED if other in self._lists.survivors else KEY
            held = (other == site and graph.complete) or other in self._inbox.get(site, ())
            if record[: m.KIND] != due or not held:
                raise self._odd(site, "it reveals shares that it was not asked for")
        for other, record in records.items():
            self._answers.setdefault(other, {})[site] = record[m.KIND :]

    def unmask(self, total: masks.Residues) -> None:
        """Remove the masks from the sum of the survivors' masked values [d] (mod 2^32), in place.

        Raises SiteError if shares of a secret are missing or do not reconstruct it.
        """
        # Reconstruct all secrets first, so that a missing one leaves the sum untouched.
        own = [(self._own_key(site), True) for site in sorted(self._lists.survivors)]
        pairs = [key for site in sorted(self._lists.dropped) for key in self._left_over(site)]
        masks.apply(total, [*own, *pairs])

    def _own_key(self, site: int) -> bytes:
        seed = self._secret(site, self._adverts[site][2 * PUBLIC : m.KEYS], _commitment)
        return derive(seed, self.binding.digest, b"fedsight self")

    def _left_over(self, site: int) -> list[tuple[bytes, bool]]:
        """Masks that survivors share with a site that dropped out: (key, subtract?)."""
        ends = [other for other in sorted(self._lists.survivors) if site in self._inbox[other]]
        if not ends:
            return []
        public = self._adverts[site][PUBLIC : 2 * PUBLIC]
        private = self._secret(site, public, lambda _, key: KeyPair(key).public)
        pair, digest, found = KeyPair(private), self.binding.digest, []
        for other in ends:
            theirs = self._adverts[other][PUBLIC : 2 * PUBLIC]
            key = mask_key(pair, theirs, digest, (site, other))
            found.append((key, other < site))  # the lower number added
        return found

    def _secret(self, site: int, known: bytes, check: Callable[[bytes, bytes], bytes]) -> bytes:
        shares = self._answers.get(site, {})
        least = self.binding.parameters.threshold
        name = self.binding.name(site)
        if len(shares) < least:
            raise SiteError(
                f"the sum of round {self.binding.round} cannot be unmasked: {len(shares)} of the "
                f"neighbours of site '{name}' are left, but {least} are needed",
                "too many sites dropped out: check the rejected ones, or raise secure.dropout. "
                "The last checkpoint is intact",
            )
        try:
            secret = join(shares, least)
        except ValueError:
            secret = b""
        if not secret or check(self.binding.digest, secret) != known:
            raise SiteError(
                f"the shares of site '{name}' do not reconstruct its secret in round "
                f"{self.binding.round}",
                "a site sent or dealt wrong shares: exclude it",
            )
        return secret

    def _enough(self, sites: Iterable[int], did: str) -> None:
        parameters = self.binding.parameters
        count, least = len(list(sites)), max(parameters.survivors, parameters.threshold)
        if count < least:
            raise SiteError(
                f"only {count} of {len(self.binding.roster)} sites {did} in round "
                f"{self.binding.round}, but secure aggregation needs {least}",
                "check the rejected sites, or raise secure.dropout. The last checkpoint is intact",
            )

    def _signature(self, mark: bytes, site: int, message: bytes, content: bytes) -> bytes:
        """The signature in a site's message, of `content`."""
        records = m.read(mark, self.binding, message, SIGNATURE, self._sender(site))
        signature = records.get(site, b"")
        if set(records) != {site} or not signed(self.binding.identity(site), signature, content):
            raise self._odd(site, "it did not sign what it was asked to")
        return signature

    def _sender(self, site: int) -> str:
        return f"site '{self.binding.name(site)}'"

    def _odd(self, site: int, why: str) -> SiteError:
        return SiteError(
            f"rejected a secure aggregation message from {self._sender(site)}: {why}",
            "run the same FedSight version at this site; if that is so, it cheats: revoke it",
        )


def _commitment(digest: bytes, seed: bytes) -> bytes:
    return hashlib.sha256(digest + seed).digest()
