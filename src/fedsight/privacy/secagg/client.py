"""A site's side of one round of secure aggregation: four answers, each given once.

SecAgg+ (Bell et al. 2020; Bonawitz et al. 2017, "Practical secure aggregation for
privacy-preserving machine learning", CCS), with long-term identities of the sites.

    new --advertise--> advertised --share--> shared --masker--> masked --unmask--> done

A request that is repeated unchanged, because its answer was lost, gets the same answer. Any other
request that is not due is refused.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.graph import Parameters
from fedsight.privacy.secagg.keys import (
    PUBLIC,
    SIGNATURE,
    Identity,
    agree,
    derive,
    public_key,
    seal,
    signed,
    unseal,
)
from fedsight.privacy.secagg.masks import Masker
from fedsight.privacy.secagg.shares import SHARE, split

SEED, KEY = b"\0", b"\1"  # which secret a share belongs to: the self-seed or the mask key
_COORDINATOR = "the coordinator"


@dataclass(frozen=True)
class Minimums:
    """The least that a site accepts, whatever the coordinator says."""

    cohort: int = 3
    threshold: int = 2
    neighbours: int = 2
    survivors: int = 2

    def at_least(self, computed: Parameters) -> Minimums:
        """The larger of these and what the program's stated rates require."""
        return Minimums(
            self.cohort,
            max(self.threshold, computed.threshold),
            max(self.neighbours, computed.neighbours),
            max(self.survivors, computed.survivors),
        )

    def refuse(self, binding: m.Binding) -> None:
        """Raise SiteError if the round offers less."""
        given, sites = binding.parameters, len(binding.roster)
        offers = {
            "sites in the cohort": (sites, self.cohort),
            "shares to reconstruct a secret": (given.threshold, self.threshold),
            "neighbours": (min(given.neighbours, sites - 1), self.neighbours),
            "survivors": (given.survivors, self.survivors),
        }
        for what, (offered, least) in offers.items():
            if offered < least:
                raise SiteError(
                    f"the round has {offered} {what}, but this site requires at least {least}",
                    "let more sites take part, or agree on lower minimums with the site's owner",
                )
        if given.threshold > sites or given.survivors > sites:
            cause = (
                f"{given.threshold} shares or {given.survivors} survivors are more than the "
                f"{sites} sites of the round"
            )
            raise SiteError(cause, "this is a bug in the coordinator")


def sign_part(digest: bytes, number: int, keys: bytes) -> bytes:
    """The signed content of an advert: the round's binding, the site's number, and its keys."""
    return b"fedsight advert\0" + digest + number.to_bytes(m.NUMBER, "big") + keys


def pair_context(digest: bytes, sender: int, receiver: int) -> bytes:
    """The context that ties a sealed pair of shares to the round, its dealer and its receiver."""
    ends = sender.to_bytes(m.NUMBER, "big") + receiver.to_bytes(m.NUMBER, "big")
    return b"fedsight shares\0" + digest + ends


def mask_key(private: bytes, public: bytes, digest: bytes) -> bytes:
    """The key of a pair's mask: the same at both ends, different in every round."""
    return derive(agree(private, public), digest, b"fedsight mask")


class SecAggClient:
    """One site in one round; its secrets are held here and nowhere else."""

    def __init__(
        self, identity: Identity, binding: m.Binding, number: int, least: Minimums
    ) -> None:
        """Take part as site `number` of the binding's roster.

        Raises SiteError if the roster has another key under that number, or if the round offers
        less than the site requires.
        """
        least.refuse(binding)
        if not number < len(binding.roster) or binding.identity(number) != identity.public:
            cause = "the coordinator's roster has another identity key under this site's name"
            raise SiteError(cause, "somebody replaced it: ask the operator")
        self.binding = binding
        self.number = number
        self._identity = identity
        self._seal = secrets.token_bytes(32)  # X25519: opens shares from neighbours
        self._mask = secrets.token_bytes(32)  # X25519: derives the masks of pairs
        self._seed = secrets.token_bytes(32)  # of this site's own mask
        self._neighbours = set(binding.graph.of(number))
        self._own = int(binding.graph.complete)  # 1 if it holds a share of its own seed
        self._adverts: dict[int, bytes] = {}
        self._held: dict[int, bytes] = {}  # shares of other sites' secrets and of its own seed
        self._phase = "new"
        self._said: dict[str, tuple[bytes, bytes]] = {}

    def advertise(self) -> bytes:
        """Phase 0: this round's two public keys and a commitment to the seed, signed."""

        def answer() -> bytes:
            commitment = hashlib.sha256(self.binding.digest + self._seed).digest()
            keys = public_key(self._seal) + public_key(self._mask) + commitment
            signature = self._identity.sign(sign_part(self.binding.digest, self.number, keys))
            return m.write(m.ADVERTISE, self.binding, {self.number: keys + signature})

        return self._once("new", "advertised", b"", answer)

    def share(self, adverts: bytes) -> bytes:
        """Phase 1: receive the neighbours' adverts, return sealed shares for each of them.

        Raises SiteError for an advert from a site that is not a neighbour, for one not signed by
        its site's identity for this very round, and for too few adverts.
        """

        def answer() -> bytes:
            found = m.read(m.ADVERTS, self.binding, adverts, m.ADVERT, _COORDINATOR)
            for site, advert in found.items():
                self._check_advert(site, advert)
            self._enough(len(found) + self._own)
            self._adverts = found
            return self._deal()

        return self._once("advertised", "shared", adverts, answer)

    def masker(self, inbox: bytes) -> Masker:
        """Phase 2: receive the shares sealed for this site, return the masks of its update.

        Masks only with neighbours that dealt shares, because only their masks can be removed again.
        A second call is refused: two updates under one mask would reveal their difference.
        """
        self._due("shared", "the update was already masked")
        found = m.read(m.INBOX, self.binding, inbox, m.SEALED, _COORDINATOR)
        held, pairs = {}, []
        for site, sealed in found.items():
            if site not in self._adverts:
                raise self._refuse(
                    f"it forwards shares of site '{self._name(site)}', which were not expected"
                )
            public = self._adverts[site]
            shares = unseal(
                self._seal_key(public), sealed, pair_context(self.binding.digest, site, self.number)
            )
            if shares is None or len(shares) != m.PAIR:
                raise self._refuse(f"the shares that site '{self._name(site)}' sealed were altered")
            held[site] = shares
            key = mask_key(self._mask, public[PUBLIC : 2 * PUBLIC], self.binding.digest)
            pairs.append((key, site < self.number))
        self._enough(len(held) + self._own)
        self._held |= held
        self._phase = "masked"
        return Masker(self._own_key(), pairs)

    def unmask(self, request: bytes) -> bytes:
        """Phase 3: a share of each surviving neighbour's seed and of each dropped one's mask key.

        It never reveals both of one neighbour. Raises SiteError for lists that overlap or name
        unknown sites, for too few survivors, and for a second request.
        """

        def answer() -> bytes:
            survivors, dropped = m.read_lists(self.binding, request)
            if self.number not in survivors:
                raise self._refuse("it claims that this site dropped out, but it answered")
            least = max(self.binding.parameters.survivors, self.binding.parameters.threshold)
            if len(survivors) < least:
                raise self._refuse(f"{len(survivors)} survivors are too few: at least {least}")
            for site in (survivors | dropped) & self._neighbours:
                if site not in self._held:
                    raise self._refuse(f"site '{self._name(site)}' dealt no shares to this site")
            return self._reveal(survivors, dropped)

        return self._once("masked", "done", request, answer)

    # Implementation -----------------------------------------------------------------------

    def _once(self, phase: str, after: str, question: bytes, answer: Callable[[], bytes]) -> bytes:
        if after in self._said:
            asked, said = self._said[after]
            if asked == question:
                return said
            raise self._refuse("it was answered before, with other content")
        self._due(phase, "it is not the request expected now")
        said = answer()
        self._said[after] = question, said
        self._phase = after
        return said

    def _due(self, phase: str, why: str) -> None:
        if self._phase != phase:
            raise self._refuse(why)

    def _check_advert(self, site: int, advert: bytes) -> None:
        if site not in self._neighbours:
            raise self._refuse(f"site '{self._name(site)}' is not a neighbour of this site")
        keys, signature = advert[: m.KEYS], advert[-SIGNATURE:]
        message = sign_part(self.binding.digest, site, keys)
        if not signed(self.binding.identity(site), signature, message):
            raise self._refuse(f"the keys of site '{self._name(site)}' are not signed by that site")

    def _enough(self, holders: int) -> None:
        """Refuse a neighbourhood too small to reconstruct a secret."""
        least = self.binding.parameters.threshold
        if holders < least:
            raise self._refuse(
                f"only {holders} sites of the neighbourhood are left, but {least} are needed"
            )

    def _deal(self) -> bytes:
        """Shares of both secrets for each neighbour; one share of the seed stays here."""
        threshold, neighbours = self.binding.parameters.threshold, sorted(self._adverts)
        seeds = split(self._seed, [*neighbours, *[self.number] * self._own], threshold)
        # A site holds no share of its own mask key. If the threshold requires all remaining sites,
        # none may drop out any more, and no shares of the key are needed.
        keys = dict.fromkeys(neighbours, bytes(SHARE))
        if len(neighbours) >= threshold:
            keys = split(self._mask, neighbours, threshold)
        if self._own:
            self._held[self.number] = seeds[self.number] + bytes(SHARE)
        sealed = {
            site: seal(
                self._seal_key(self._adverts[site]),
                seeds[site] + keys[site],
                pair_context(self.binding.digest, self.number, site),
            )
            for site in neighbours
        }
        return m.write(m.SHARES, self.binding, sealed)

    def _reveal(self, survivors: set[int], dropped: set[int]) -> bytes:
        records = {}
        for site, shares in self._held.items():
            if site in survivors:
                records[site] = SEED + shares[:SHARE]
            elif site in dropped:
                records[site] = KEY + shares[SHARE:]
        self._held.clear()
        return m.write(m.ANSWER, self.binding, records)

    def _own_key(self) -> bytes:
        return derive(self._seed, self.binding.digest, b"fedsight self")

    def _seal_key(self, advert: bytes) -> bytes:
        secret = agree(self._seal, advert[:PUBLIC])
        return derive(secret, self.binding.digest, b"fedsight seal")

    def _name(self, site: int) -> str:
        return self.binding.name(site)

    def _refuse(self, why: str) -> SiteError:
        return SiteError(
            f"refused a request of the coordinator in round {self.binding.round}: {why}",
            "nothing was revealed; if it happens again, ask the operator",
        )
