"""The sum of a cohort's quantised, and possibly masked, updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.types import Payload
from fedsight.privacy.base import Mechanism
from fedsight.privacy.base import Plan as Accounted
from fedsight.privacy.mechanisms.distributed import Distributed
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.secagg.masks import Masker, Residues
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secure import Secure


@dataclass(frozen=True)
class EncodingPlan:
    """What determines how a run's updates are rounded and noised: settings, lengths of the parts,
    seed, largest weight, local learning rate, mechanism, rounds.

    Draws from the seed are public. A site that protects its images rounds by draws that it keeps
    `secret`: in a sum of updates that are small beside a level, everybody could otherwise see which
    site's value was rounded up, and so compare single values with the draw.
    """

    secure: Secure
    sizes: Mapping[str, int]
    seed: int
    cap: int
    lr: float
    privacy: Mechanism
    rounds: int
    noise: MakeNoise  # drawn from the secret of the party that adds it
    secret: bool = False  # whether the draws that round are, too

    def quantiser(self, terms: int) -> Quantiser:
        """The quantiser for a round of `terms` sites."""
        levels = None
        if isinstance(self.privacy, Distributed):
            levels = self.privacy.levels(self.accounted(terms))
        return self.secure.quantiser(self.sizes, terms, self.cap, self.lr, levels)

    def accounted(self, terms: int) -> Accounted:
        """The accountant's plan for rounds of `terms` sites each."""
        plan = Accounted(terms, None, self.rounds)
        return self.secure.facing(plan, self.sizes, terms, self.lr)

    def protect(
        self,
        quantiser: Quantiser,
        payload: Payload,
        weight: int,
        site: str,
        round: int,
        masker: Masker | None,
    ) -> Residues:
        """What a site sends [d], modulo 2^32; SiteError naming it as `Quantiser.encode` does."""
        seed = None if self.secret else self.seed
        words = quantiser.encode(payload, weight, site, seed, round, self.noise)
        if masker is not None:
            masker.mask(words)
        elif self.secure.masks:
            raise SiteError(
                f"site '{site}' has no keys in round {round}: it took no part in the key exchange",
                "find out why it was rejected there",
            )
        return words


class SecureSum:
    """The sum modulo 2^32 of what sites send; `shared` is an int32 tensor [d] to keep it in."""

    def __init__(self, plan: EncodingPlan, terms: int, shared: Tensor | None = None) -> None:
        self.plan = plan
        length = sum(plan.sizes.values())
        self._tensor = torch.zeros(length, dtype=torch.int32) if shared is None else shared
        self.words: Residues = self._tensor.numpy().view(np.uint32)
        self._quantiser: Quantiser | None = None
        self._round = 0
        self._maskers: Mapping[str, Masker] = {}
        self.clear(terms)

    def clear(self, terms: int) -> None:
        """Reset, for at most `terms` replies."""
        self.words.fill(0)
        self._terms, self._quantiser = terms, None
        self.count = self.weight = 0

    @property
    def quantiser(self) -> Quantiser:
        """The quantiser of a reply; created on first use, when the cohort is known."""
        if self._quantiser is None:
            self._quantiser = self.plan.quantiser(self._terms)
        return self._quantiser

    def begin(self, round: int, maskers: Mapping[str, Masker]) -> None:
        """Set the round, and the masker that `add` uses for each site."""
        self._round, self._maskers = round, maskers

    def add(self, payload: Payload, weight: int, site: str) -> None:
        """Quantise, mask and add a reply's payload; on SiteError nothing is added."""
        masker = self._maskers.get(site)
        plan = self.plan
        words = plan.protect(self.quantiser, payload, weight, site, self._round, masker)
        self.add_words(words, weight, site)

    def add_words(self, words: Residues, weight: int, site: str) -> None:
        """Add the words [d] that a site sent."""
        self._require_room(self.count + 1, f"site '{site}' would be")
        np.add(self.words, words, out=self.words)
        self.count += 1
        self.weight += weight

    def merge(self, other: SecureSum) -> None:
        """Add the sum over other sites of the same cohort."""
        self._require_room(self.count + other.count, "they are")
        np.add(self.words, other.words, out=self.words)
        self.count += other.count
        self.weight += other.weight

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensor that holds the sum."""
        return {"sum": self._tensor}

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Note that the tensor now holds the sum of `count` of at most `terms` replies."""
        self._terms, self._quantiser = terms, None
        self.count, self.weight = count, weight

    def mean(self) -> dict[str, Tensor]:
        """Weighted mean of each part, float64; masks must have been removed."""
        return self._decoded(self.weight)

    def plain(self) -> dict[str, Tensor]:
        """Weighted sum of each part, float64; masks must have been removed."""
        return self._decoded(1)

    def _decoded(self, weight: int) -> dict[str, Tensor]:
        sums = self.words & np.uint32((1 << self.quantiser.modulus) - 1)
        return self.quantiser.decode(sums, self.count, weight)

    def _require_room(self, count: int, who: str) -> None:
        if count > self._terms:
            raise SiteError(
                f"{who} reply {count} in a sum of {self._terms}",
                "a site answered twice, or the cohort is larger than announced",
            )
