"""The sum of a cohort's quantised, and possibly masked, updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import FedSightError, SiteError
from fedsight.core.types import PartSpecs, Payload
from fedsight.privacy.base import Mechanism
from fedsight.privacy.base import Plan as Accounted
from fedsight.privacy.mechanisms.distributed import Distributed
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.secagg import pack
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.masks import Masker
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secagg.words import Words
from fedsight.privacy.secure import Secure


@dataclass(frozen=True)
class EncodingPlan:
    """What determines how a run's updates are rounded and noised: settings, lengths of the parts,
    seed, largest weight, local learning rate, mechanism, rounds; and which parts are integers that
    are neither.

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
    integers: PartSpecs = field(default_factory=dict)
    secret: bool = False  # whether the draws that round are, too

    def quantiser(self, terms: int) -> Quantiser:
        """The quantiser for a round of `terms` sites."""
        levels = None
        if isinstance(self.privacy, Distributed):
            levels = self.privacy.levels(self.accounted(terms))
        made = self.secure.quantiser(self.sizes, terms, self.cap, self.lr, levels)
        return replace(made, integers=Integers.of(self.integers, terms))

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
    ) -> Words:
        """What a site sends; SiteError naming it as `Quantiser.encode` does."""
        seed = None if self.secret else self.seed
        levels = quantiser.encode(payload, weight, site, seed, round, self.noise)
        words = Words(levels, quantiser.integers.encode(payload, site))
        if masker is not None:
            words.mask(masker)
        elif self.secure.masks:
            raise SiteError(
                f"site '{site}' has no keys in round {round}: it took no part in the key exchange",
                "find out why it was rejected there",
            )
        return words


class SecureSum:
    """The sum of what sites send, modulo 2^32 or 2^64 (see `Words`).

    `memory` holds tensors like those of `tensors`, to keep it in.
    """

    def __init__(
        self, plan: EncodingPlan, terms: int, memory: Mapping[str, Tensor] | None = None
    ) -> None:
        self.plan = plan
        length = sum(plan.sizes.values())
        count = sum(spec.values for spec in plan.integers.values())
        self._tensors = memory or {
            "sum": torch.zeros(length, dtype=torch.int32),
            "integers": torch.zeros(count, dtype=torch.int64),
        }
        self.words = Words(
            self._tensors["sum"].numpy().view(np.uint32),
            self._tensors["integers"].numpy().view(np.uint64),
        )
        self._quantiser: Quantiser | None = None
        self._round = 0
        self._maskers: Mapping[str, Masker] = {}
        self.clear(terms)

    def clear(self, terms: int) -> None:
        """Reset, for at most `terms` replies."""
        self.words.clear()
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

    def add(self, payload: Payload, weight: int, site: str, factor: float = 1.0) -> None:
        """Quantise, mask and add a reply's payload; on SiteError nothing is added.

        Raises FedSightError for a factor: nobody can multiply what is masked.
        """
        if factor != 1.0:
            raise FedSightError(
                f"the update of site '{site}' is masked and cannot be weighted by staleness",
                "set rounds.mode = 'synchronous'",
            )
        masker = self._maskers.get(site)
        plan = self.plan
        words = plan.protect(self.quantiser, payload, weight, site, self._round, masker)
        self.add_words(words, weight, site)

    def add_words(self, words: Words, weight: int, site: str) -> None:
        """Add the words that a site sent; SiteError for a weight, or without masks for numbers,
        that the rounding does not have."""
        if not 0 < weight <= self.quantiser.cap:
            raise SiteError(
                f"site '{site}' has weight {weight:,}, but secure.cap is {self.quantiser.cap:,}",
                "its images are more than the program allows: raise secure.cap, or set "
                "rounds.weighting = 'uniform'",
            )
        if not self.plan.secure.masks:
            self.quantiser.check_levels(words.levels, 1, f"site '{site}' sent")
            self.quantiser.integers.check_sums(words.integers, 1, f"site '{site}' sent")
        self._require_room(self.count + 1, f"site '{site}' would be")
        self.words.add(words)
        self.count += 1
        self.weight += weight

    def merge(self, other: SecureSum) -> None:
        """Add the sum over other sites of the same cohort."""
        self._require_room(self.count + other.count, "they are")
        self.words.add(other.words)
        self.count += other.count
        self.weight += other.weight

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that hold the sum."""
        return dict(self._tensors)

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Note that the tensors now hold the sum of `count` of at most `terms` replies."""
        self._terms, self._quantiser = terms, None
        self.count, self.weight = count, weight

    def mean(self) -> dict[str, Tensor]:
        """Weighted mean of each rounded part, float64; masks must have been removed."""
        return self._decoded(self.weight)

    def plain(self) -> dict[str, Tensor]:
        """Weighted sum of each rounded part, float64; masks must have been removed."""
        return self._decoded(1)

    def integers(self) -> dict[str, Tensor]:
        """Sum of each integer part, int64, in its shape; masks must have been removed."""
        found = self.quantiser.integers.decode(self.words.integers)
        self.quantiser.integers.check_sums(self.words.integers, self.count, self._who)
        return {part: found[part].view(spec.shape) for part, spec in self.plan.integers.items()}

    def _decoded(self, weight: int) -> dict[str, Tensor]:
        sums = pack.lowest(self.words.levels, self.quantiser.modulus)
        self.quantiser.check_levels(sums, self.count, self._who)
        return self.quantiser.decode(sums, self.count, weight)

    @property
    def _who(self) -> str:
        return f"the sum of {self.count} sites holds"

    def _require_room(self, count: int, who: str) -> None:
        if count > self._terms:
            raise SiteError(
                f"{who} reply {count} in a sum of {self._terms}",
                "a site answered twice, or the cohort is larger than announced",
            )
