"""The coordinator's side of one round: it forwards messages and removes the masks from the sum.

It is trusted with nothing: the sites refuse whatever it could do wrong (`client.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import masks
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import KEY, SEED, mask_key, sign_part
from fedsight.privacy.secagg.conflicts import Conflict, left_out, suspects
from fedsight.privacy.secagg.consistency import confirming, inbox_part, lists_part, pick
from fedsight.privacy.secagg.graph import colluding
from fedsight.privacy.secagg.keys import (
    PUBLIC,
    SIGNATURE,
    KeyPair,
    derive,
    is_usable,
    signed,
)
from fedsight.privacy.secagg.shares import SHARE, join
from fedsight.privacy.secagg.wrong_shares import recover

NAMED = 3  # sites that a sentence names


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
        # A dealer and a receiver: one of the two has altered shares, or sent others than it holds.
        self.conflicts: set[Conflict] = set()

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
        """Store a site's confirmation of its inbox; SiteError unless it signed what it was sent.

        If it complains about shares instead, `conflicts` holds their dealers and this site.
        """
        if message[: m.MARK] == m.COMPLAIN:
            raise self._complaint(site, message)
        content = inbox_part(self.binding, site, self._inbox.get(site, set()))
        self._confirmed[site] = self._signature(m.CONFIRM, site, message, content)

    def _complaint(self, site: int, message: bytes) -> SiteError:
        accused = set(m.read(m.COMPLAIN, self.binding, message, 0, self._sender(site)))
        if not accused or not accused <= self._inbox.get(site, set()):
            return self._odd(site, "it complains about shares that it was not sent")
        self.conflicts |= {(dealer, site) for dealer in accused}
        names = ", ".join(f"'{self.binding.name(dealer)}'" for dealer in sorted(accused))
        return SiteError(
            f"{self._sender(site)} cannot open the shares that were sealed for it by {names}",
            "one of them cheats, or runs another FedSight version",
        )

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

    def unmask(self, levels: masks.Residues, integers: masks.WideResidues | None = None) -> None:
        """Remove the masks from the sum of the survivors' masked levels [d] and integers [k].

        They are modulo 2^32 and 2^64, and change in place.

        Shares that are wrong are left out, if enough others came, and noted in `conflicts`. Raises
        SiteError if shares of a secret are missing or do not reconstruct it.
        """
        # Reconstruct all secrets first, so that a missing one leaves the sum untouched.
        secrets, digest = self._secrets(), self.binding.digest
        survivors, dropped = sorted(self._lists.survivors), sorted(self._lists.dropped)
        own = [(derive(secrets[site], digest, b"fedsight self"), True) for site in survivors]
        pairs = [
            key
            for site in dropped
            if site in secrets
            for key in self._left_over(site, secrets[site])
        ]
        masks.apply(levels, [*own, *pairs])
        if integers is not None and len(integers):
            masks.apply(integers, [*own, *pairs])

    def left_out(self, corrupt: float) -> set[str]:
        """The names of sites without which the phases can begin again; `corrupt` as in `doubts`."""
        found = left_out(self.conflicts, colluding(len(self.binding.roster), corrupt))
        return {self.binding.name(site) for site in found}

    def doubts(self, corrupt: float) -> dict[str, str]:
        """The sites that may have cheated, by name, and why; `corrupt`: the share of all sites
        that may be malicious."""
        found = {}
        for site in sorted(suspects(self.conflicts, colluding(len(self.binding.roster), corrupt))):
            pairs = [pair for pair in self.conflicts if site in pair]
            others = sorted({end for pair in pairs for end in pair} - {site})
            names = ", ".join(self._sender(end) for end in others[:NAMED])
            names += f" and {len(others) - NAMED} others" if len(others) > NAMED else ""
            found[self.binding.name(site)] = (
                f"{self._sender(site)} and {names} contradict each other about shares of secrets: "
                "one side cheats, or runs another FedSight version"
                if others
                else f"{self._sender(site)} sent a wrong share of its own secret"
            )
        return found

    def _ends(self, site: int) -> list[int]:
        """The survivors that share a mask with a site."""
        return [other for other in sorted(self._lists.survivors) if site in self._inbox[other]]

    def _left_over(self, site: int, private: bytes) -> list[tuple[bytes, bool]]:
        """Masks that survivors share with a site that dropped out: (key, subtract?)."""
        pair, digest, found = KeyPair(private), self.binding.digest, []
        for other in self._ends(site):
            theirs = self._adverts[other][PUBLIC : 2 * PUBLIC]
            key = mask_key(pair, theirs, digest, (site, other))
            found.append((key, other < site))  # the lower number added
        return found

    def _secrets(self) -> dict[int, bytes]:
        """The seed of each survivor, and the mask key of each site that dropped out and left masks.

        Raises SiteError if there are too few shares of one, or too many are wrong.
        """
        dropped = [site for site in sorted(self._lists.dropped) if self._ends(site)]
        found: dict[int, bytes] = {}
        failed: list[int] = []
        for site in [*sorted(self._lists.survivors), *dropped]:
            secret = self._secret(site)
            if secret is None:
                failed.append(site)
            else:
                found[site] = secret
            if len(failed) == NAMED:  # each of them takes long, and it is known whom to look at
                break
        if failed:
            raise self._wrong(failed)
        return found

    def _secret(self, site: int) -> bytes | None:
        """A secret from its shares; None if too many of them are wrong."""
        shares, least = self._answers.get(site, {}), self.binding.parameters.threshold
        if len(shares) < least:
            raise SiteError(
                f"the sum of round {self.binding.round} cannot be unmasked: {len(shares)} of the "
                f"neighbours of site '{self.binding.name(site)}' are left, but {least} are needed",
                "too many sites dropped out: check the rejected ones, or raise secure.dropout. "
                "The last checkpoint is intact",
            )
        advert, digest = self._adverts[site], self.binding.digest

        def fits(secret: bytes) -> bool:
            if site in self._lists.survivors:
                return hashlib.sha256(digest + secret).digest() == advert[2 * PUBLIC : m.KEYS]
            return KeyPair(secret).public == advert[PUBLIC : 2 * PUBLIC]

        with contextlib.suppress(ValueError):
            if fits(secret := join(shares, least)):
                return secret
        found = recover(shares, least, fits)
        if found is None:
            return None
        secret, wrong = found
        self.conflicts |= {(site, holder) for holder in wrong}
        return secret

    def _wrong(self, failed: list[int]) -> SiteError:
        """The error that the secrets of the sites `failed` do not come out of their shares."""
        names = ", ".join(f"'{self.binding.name(site)}'" for site in failed)
        if len(failed) == 1:
            return SiteError(
                f"the shares of site {names} do not reconstruct its secret in round "
                f"{self.binding.round}: it dealt wrong ones, or too many that came are wrong",
                "exclude it; if rounds then fail in other sites' names, it was not to blame, and "
                "another site sends wrong shares",
            )
        return SiteError(
            f"the shares of the sites {names} do not reconstruct their secrets in round "
            f"{self.binding.round}: they dealt wrong ones, or others sent wrong ones of them",
            "exclude one site after the other until it does not recur: one that answered cheats",
        )

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
