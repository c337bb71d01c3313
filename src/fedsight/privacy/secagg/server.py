"""The coordinator's part in one round: it passes messages on, and takes the masks off the sum.

It is trusted with nothing: what it could do wrong, the sites refuse (`client.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import masks
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import KEY, SEED, mask_key, sign_part
from fedsight.privacy.secagg.keys import PUBLIC, SIGNATURE, derive, public_key, signed
from fedsight.privacy.secagg.shares import SHARE, join


class SecAggServer:
    """One round; `advert`, `share` and `answer` take what came from a site, by its number."""

    def __init__(self, binding: m.Binding) -> None:
        self.binding = binding
        self._adverts: dict[int, bytes] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}  # from whom -> to whom -> what
        self._inbox: dict[int, set[int]] = {}  # whose shares each site was handed
        self._answers: dict[int, dict[int, bytes]] = {}  # about whom -> from whom -> the record
        self._survivors: set[int] = set()
        self._dropped: set[int] = set()

    # Phase 0 and 1: keys and shares -------------------------------------------------------

    def advert(self, site: int, message: bytes) -> None:
        """Keep a site's keys; SiteError unless they are its own, signed for this round."""
        records = m.read(m.ADVERTISE, self.binding, message, m.ADVERT, self._sender(site))
        if set(records) != {site}:
            raise self._odd(site, "it advertises another site's keys")
        advert = records[site]
        part = sign_part(self.binding.digest, site, advert[: m.KEYS])
        if not signed(self.binding.identity(site), advert[-SIGNATURE:], part):
            raise self._odd(site, "its keys are not signed by its identity")
        self._adverts[site] = advert

    def adverts(self, site: int) -> bytes:
        """The adverts of a site's neighbours, for it."""
        self._enough(self._adverts, "sent their keys")
        near = self.binding.graph.of(site)
        found = {other: self._adverts[other] for other in near if other in self._adverts}
        return m.write(m.ADVERTS, self.binding, found)

    def share(self, site: int, message: bytes) -> None:
        """Keep what a site sealed for its neighbours; SiteError unless it is for each of them."""
        records = m.read(m.SHARES, self.binding, message, m.SEALED, self._sender(site))
        due = {other for other in self.binding.graph.of(site) if other in self._adverts}
        if site not in self._adverts or set(records) != due:
            raise self._odd(site, "its shares are not for its neighbours")
        self._sealed[site] = records

    def inbox(self, site: int) -> bytes:
        """What a site's neighbours sealed for it. Call it when all shares are in."""
        self._enough(self._sealed, "dealt their shares")
        near = self.binding.graph.of(site)
        found = {other: self._sealed[other][site] for other in near if other in self._sealed}
        self._inbox[site] = set(found)
        return m.write(m.INBOX, self.binding, found)

    # Phase 3: unmasking -------------------------------------------------------------------

    def request(self, survivors: Iterable[int]) -> bytes:
        """The question to all survivors: those whose masked update was added to the sum."""
        self._survivors = set(survivors)
        if not self._survivors <= set(self._inbox):
            raise ValueError("a survivor never had its neighbours' shares")
        self._enough(self._survivors, "sent an update")
        self._dropped = set(self._sealed) - self._survivors
        return m.write_lists(self.binding, self._survivors, self._dropped)

    def answer(self, site: int, message: bytes) -> None:
        """Keep a site's shares; SiteError unless they are those that it was asked for."""
        length, graph = m.KIND + SHARE, self.binding.graph
        records = m.read(m.ANSWER, self.binding, message, length, self._sender(site))
        for other, record in records.items():
            due = SEED if other in self._survivors else KEY
            held = (other == site and graph.complete) or other in self._inbox.get(site, ())
            if record[: m.KIND] != due or not held:
                raise self._odd(site, "it reveals what it was not asked for")
        for other, record in records.items():
            self._answers.setdefault(other, {})[site] = record[m.KIND :]

    def unmask(self, total: masks.Residues) -> None:
        """Take the masks off the sum of the survivors' masked values [d] (modulo 2^32), in place.

        Raises SiteError when a secret lacks shares, or its shares make another one.
        """
        # Whatever is missing shows before anything is taken off.
        own = [(self._own_key(site), True) for site in sorted(self._survivors)]
        pairs = [key for site in sorted(self._dropped) for key in self._left_over(site)]
        masks.apply(total, [*own, *pairs])

    def _own_key(self, site: int) -> bytes:
        seed = self._secret(site, self._adverts[site][2 * PUBLIC : m.KEYS], _commitment)
        return derive(seed, self.binding.digest, b"fedsight self")

    def _left_over(self, site: int) -> list[tuple[bytes, bool]]:
        """What survivors masked with a site that never sent its own masks: (key, subtract?)."""
        ends = [other for other in sorted(self._survivors) if site in self._inbox[other]]
        if not ends:
            return []
        public = self._adverts[site][PUBLIC : 2 * PUBLIC]
        private = self._secret(site, public, lambda _, key: public_key(key))
        digest, found = self.binding.digest, []
        for other in ends:
            theirs = self._adverts[other][PUBLIC : 2 * PUBLIC]
            found.append((mask_key(private, theirs, digest), other < site))  # the lower one added
        return found

    def _secret(self, site: int, known: bytes, check: Callable[[bytes, bytes], bytes]) -> bytes:
        shares = self._answers.get(site, {})
        least = self.binding.parameters.threshold
        name = self.binding.name(site)
        if len(shares) < least:
            raise SiteError(
                f"the sum of round {self.binding.round} cannot be unmasked: {len(shares)} of the "
                f"neighbours of site '{name}' are left, and it takes {least}",
                "too many sites dropped out: look at the rejected ones, or raise secure.dropout. "
                "The last checkpoint is whole",
            )
        try:
            secret = join(shares, least)
        except ValueError:
            secret = b""
        if not secret or check(self.binding.digest, secret) != known:
            raise SiteError(
                f"the shares of site '{name}' do not make its secret in round {self.binding.round}",
                "a site sent a wrong share, or dealt wrong ones: leave it out",
            )
        return secret

    def _enough(self, sites: Iterable[int], did: str) -> None:
        parameters = self.binding.parameters
        count, least = len(list(sites)), max(parameters.survivors, parameters.threshold)
        if count < least:
            raise SiteError(
                f"only {count} of {len(self.binding.roster)} sites {did} in round "
                f"{self.binding.round}, and secure aggregation takes {least}",
                "look at the rejected sites, or raise secure.dropout. The last checkpoint is whole",
            )

    def _sender(self, site: int) -> str:
        return f"site '{self.binding.name(site)}'"

    def _odd(self, site: int, why: str) -> SiteError:
        return SiteError(
            f"a message of {self._sender(site)} in secure aggregation is refused: {why}",
            "let it run the same FedSight version; if it does, it cheats: revoke it",
        )


def _commitment(digest: bytes, seed: bytes) -> bytes:
    return hashlib.sha256(digest + seed).digest()
