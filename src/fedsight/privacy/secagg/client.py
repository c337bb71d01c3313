"""A site's side of one round of secure aggregation: each answer is given once.

SecAgg+ (Bell et al. 2020; Bonawitz et al. 2017, "Practical secure aggregation for
privacy-preserving machine learning", CCS), with long-term identities of the sites.

    new --advertise--> advertised --share--> shared --confirm--> confirmed --masker--> masked
    masked --agree--> agreed --unmask--> done            (or complained)

Only members of the committee are asked to agree; the others go from masked to done. A request that
is repeated unchanged, because its answer was lost, gets the same answer. Any other request that is
not due is refused.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.consistency import inbox_part, lists_part, objection, unproven
from fedsight.privacy.secagg.graph import Parameters
from fedsight.privacy.secagg.keys import (
    PUBLIC,
    SIGNATURE,
    Identity,
    KeyPair,
    derive,
    is_usable,
    seal,
    signed,
    unseal,
)
from fedsight.privacy.secagg.masks import Masker
from fedsight.privacy.secagg.shares import SHARE, split

SEED, KEY = b"\0", b"\1"  # which secret a share belongs to: the self-seed or the mask key
_COORDINATOR = "the coordinator"
Permit = Callable[[m.Lists], None]  # raises a FedSightError if a sum must not come out


def _any(lists: m.Lists) -> None:
    """Permit any sum."""


@dataclass(frozen=True)
class Minimums:
    """The least that a site accepts, whatever the coordinator says."""

    cohort: int = 3
    threshold: int = 2
    neighbours: int = 2
    survivors: int = 2
    computed: Parameters | None = None  # what the program's stated rates determine

    def at_least(self, computed: Parameters) -> Minimums:
        """The larger of these and what the program's stated rates require.

        The circle and the committee are to be exactly as computed: their numbers fit together.
        """
        return Minimums(
            self.cohort,
            max(self.threshold, computed.threshold),
            max(self.neighbours, computed.neighbours),
            max(self.survivors, computed.survivors),
            computed,
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
        if self.computed and self.computed != replace(given, survivors=self.computed.survivors):
            raise SiteError(
                "the round's graph or committee is not the one that the program's rates determine",
                "run the same FedSight version at the coordinator and at the sites",
            )


def sign_part(digest: bytes, number: int, keys: bytes) -> bytes:
    """The signed content of an advert: the round's binding, the site's number, and its keys."""
    return b"fedsight advert\0" + digest + number.to_bytes(m.NUMBER, "big") + keys


def pair_context(digest: bytes, sender: int, receiver: int) -> bytes:
    """The context that ties a sealed pair of shares to the round, its dealer and its receiver."""
    ends = sender.to_bytes(m.NUMBER, "big") + receiver.to_bytes(m.NUMBER, "big")
    return b"fedsight shares\0" + digest + ends


def mask_key(own: KeyPair, public: bytes, digest: bytes, ends: tuple[int, int]) -> bytes:
    """The key of the mask of the sites numbered `ends`: the same at both, different in every round.

    The numbers belong to it, in either order: a colluder that advertises a copy of another site's
    public key would otherwise share that site's masks, with the opposite sign if it likes.
    """
    numbers = b"".join(site.to_bytes(m.NUMBER, "big") for site in sorted(ends))
    return derive(own.agree(public), digest, b"fedsight mask\0" + numbers)


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
        self._seal = KeyPair.fresh()  # opens shares from neighbours
        self._mask = KeyPair.fresh()  # derives the masks of pairs
        self._seed = secrets.token_bytes(32)  # of this site's own mask
        self._neighbours = set(binding.graph.of(number))
        self._own = int(binding.graph.complete)  # 1 if it holds a share of its own seed
        self._adverts: dict[int, bytes] = {}
        self._seal_keys: dict[bytes, bytes] = {}  # by the other site's advert
        self._held: dict[int, bytes] = {}  # shares of other sites' secrets and of its own seed
        self._inbox: frozenset[int] = frozenset()  # whose shares it received
        self.unopened: list[str] = []  # the sites whose shares it could not open, if any
        self._pairs: list[tuple[bytes, bool]] = []  # keys of the masks that it shares
        self._lists: m.Lists | None = None  # those that it signed
        self._phase = "new"
        self._said: dict[str, tuple[bytes, bytes]] = {}

    def advertise(self) -> bytes:
        """Phase 0: this round's two public keys and a commitment to the seed, signed."""

        def answer() -> bytes:
            commitment = hashlib.sha256(self.binding.digest + self._seed).digest()
            keys = self._seal.public + self._mask.public + commitment
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

    @property
    def met(self) -> list[tuple[str, str]]:
        """The names and keys of the neighbours that have proven to this site that they hold theirs
        (from `share` on)."""
        return [self.binding.roster[site] for site in sorted(self._adverts)]

    def confirm(self, inbox: bytes) -> bytes:
        """Phase 2: receive the shares sealed for this site, and sign from whom they came.

        Its masks are with these sites only, because only their masks can be removed again. If some
        shares cannot be opened, the answer names the sites that sealed them, and this site takes no
        further part in the attempt: they or the coordinator altered them.
        """

        def answer() -> bytes:
            found = m.read(m.INBOX, self.binding, inbox, m.SEALED, _COORDINATOR)
            opened = {site: self._opened(site, sealed) for site, sealed in found.items()}
            held = {site: shares for site, shares in opened.items() if shares is not None}
            self.unopened = [self._name(site) for site in opened if site not in held]
            if self.unopened:
                closed = dict.fromkeys(found.keys() - held.keys(), b"")
                return m.write(m.COMPLAIN, self.binding, closed)
            self._enough(len(held) + self._own)
            self._pairs = [self._pair(site) for site in found]
            self._held |= held
            self._inbox = frozenset(found)
            content = inbox_part(self.binding, self.number, self._inbox)
            return m.write(m.CONFIRM, self.binding, {self.number: self._identity.sign(content)})

        said = self._once("shared", "confirmed", inbox, answer)
        if self.unopened:
            self._phase = "complained"
        return said

    def masker(self) -> Masker:
        """Phase 3: the masks of this site's update.

        A second call is refused: two updates under one mask would reveal their difference.
        """
        self._due("confirmed", "the update was already masked, or no shares have come")
        self._phase = "masked"
        return Masker(self._own_key(), self._pairs)

    def agree(self, request: bytes, permit: Permit = _any) -> bytes:
        """Phase 4, members of the committee only: sign the lists of survivors and dropped sites.

        A site signs one pair of lists in a round. Raises SiteError for lists that overlap, that
        leave too few survivors as a whole or anywhere in the graph, or that contradict what this
        site saw itself, and whatever `permit` raises.
        """

        def answer() -> bytes:
            lists = m.read_lists(self.binding, request)
            if self.number not in self.binding.committee:
                raise self._refuse("this site does not belong to the committee")
            self._check_lists(lists)
            permit(lists)
            self._lists = lists
            content = lists_part(self.binding, lists)
            return m.write(m.AGREE, self.binding, {self.number: self._identity.sign(content)})

        return self._once("masked", "agreed", request, answer)

    def unmask(self, request: bytes, permit: Permit = _any) -> bytes:
        """Phase 5: a share of each surviving neighbour's seed and of each dropped one's mask key.

        Raises SiteError for lists that it would not sign, or that are not proven to be everybody's:
        without enough signatures of the committee over these very lists, or without the inboxes of
        the neighbours, signed by them; and whatever `permit` raises, which is asked before any
        share leaves.
        """

        def answer() -> bytes:
            lists, proof = m.read_unmask(self.binding, request)
            if self._lists is not None and lists != self._lists:
                raise self._refuse("this site signed other lists")
            self._check_lists(lists)
            if why := unproven(self.binding, self.number, lists, proof):
                raise self._refuse(why)
            permit(lists)
            return self._reveal(lists)

        if self._phase == "masked":  # nobody asked it to agree
            return self._once("masked", "done", request, answer)
        return self._once("agreed", "done", request, answer)

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
        if not all(map(is_usable, (keys[:PUBLIC], keys[PUBLIC : 2 * PUBLIC]))):
            raise self._refuse(
                f"nobody can agree on a secret with the keys of '{self._name(site)}'"
            )

    def _opened(self, site: int, sealed: bytes) -> bytes | None:
        """The pair of shares that a site sealed for this one; None if they were altered."""
        if site not in self._adverts:
            name = self._name(site)
            raise self._refuse(f"it forwards shares of site '{name}', which were not expected")
        context = pair_context(self.binding.digest, site, self.number)
        return unseal(self._seal_key(self._adverts[site]), sealed, context)

    def _pair(self, site: int) -> tuple[bytes, bool]:
        """The key of the mask shared with a site, and whether this site subtracts it."""
        public = self._adverts[site][PUBLIC : 2 * PUBLIC]
        ends = site, self.number
        return mask_key(self._mask, public, self.binding.digest, ends), site < self.number

    def _check_lists(self, lists: m.Lists) -> None:
        if why := objection(self.binding, self.number, self._inbox, lists):
            raise self._refuse(why)

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
            keys = split(self._mask.private, neighbours, threshold)
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

    def _reveal(self, lists: m.Lists) -> bytes:
        """Never both secrets of one site: the lists are disjoint, and the shares are forgotten."""
        records = {}
        for site, shares in self._held.items():
            if site in lists.survivors:
                records[site] = SEED + shares[:SHARE]
            elif site in lists.dropped:
                records[site] = KEY + shares[SHARE:]
        self._held.clear()
        return m.write(m.ANSWER, self.binding, records)

    def _own_key(self) -> bytes:
        return derive(self._seed, self.binding.digest, b"fedsight self")

    def _seal_key(self, advert: bytes) -> bytes:
        """The key of a pair's shares, the same in both directions."""
        if advert not in self._seal_keys:
            secret = self._seal.agree(advert[:PUBLIC])
            self._seal_keys[advert] = derive(secret, self.binding.digest, b"fedsight seal")
        return self._seal_keys[advert]

    def _name(self, site: int) -> str:
        return self.binding.name(site)

    def _refuse(self, why: str) -> SiteError:
        return SiteError(
            f"refused a request of the coordinator in round {self.binding.round}: {why}",
            "nothing was revealed; if it happens again, ask the operator",
        )
