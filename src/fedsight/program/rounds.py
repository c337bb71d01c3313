"""The settings of the rounds, `[rounds]`: how many, of whom, and what happens when a site fails."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedsight.core.errors import Problem
from fedsight.core.settings import Settings


class Rounds(Settings):
    """Who takes part, how often, and what happens when a site fails: `[rounds]`."""

    rounds: int = Field(20, ge=1)
    cohort: int | None = Field(None, ge=1)  # sites per round; None: all of them
    # what a site counts for in the mean: its training images; capped: at most `cap` of these;
    # uniform: as much as any other site
    weighting: Literal["samples", "capped", "uniform"] = "samples"
    cap: int | None = Field(None, ge=1)  # images that a site counts for at most, if capped
    evaluate_every: int = Field(1, ge=1)  # rounds; the last one is always evaluated
    # share of each site's training images that is set aside, for the figures of the rounds, where
    # the data have no validation part; 0: these figures are measured on the test part
    validation: float = Field(0.0, ge=0, lt=1)
    # the model that the run ends with: of the last round, or of the round with the best figure on
    # the validation part
    keep: Literal["last", "best"] = "last"
    keep_by: str | None = None  # the figure that rounds are compared by; None: the main figure
    # evaluated rounds without a better figure after which training ends; None: never
    patience: int | None = Field(None, ge=1)
    # decay of a moving average of the global model, which is measured and delivered in place of the
    # last one: the model after round i of n has a weight proportional to ema^(n - i)
    ema: float | None = Field(None, gt=0, lt=1)
    # minimum good replies of a round, or of as many sites as coins drew; None: of all sites
    quorum: int | None = Field(None, ge=1)
    # seconds that a round waits for its sites: real ones in a federation, in a simulation those of
    # [timing]; where rounds are buffered, those that a site of a federation has for its reply
    deadline: float = Field(600.0, gt=0)
    # what a round is: synchronous: all sites of the cohort train from one model; buffered: `cohort`
    # sites train at any time, each from the newest model there is when it begins, and as soon as
    # `buffer` of them have replied the model takes a step (FedBuff)
    mode: Literal["synchronous", "buffered"] = "synchronous"
    buffer: int | None = Field(None, ge=1)  # replies of a buffered round; None: half of the cohort
    # steps that the model may have taken since a site began, for its reply to count; None: any
    max_staleness: int | None = Field(None, ge=0)

    @property
    def compared(self) -> bool:
        """Whether rounds are compared, to keep one of them or to end early."""
        return self.keep == "best" or self.patience is not None

    @property
    def comparing(self) -> str:
        """The first setting that asks for that."""
        return "rounds.keep" if self.keep == "best" else "rounds.patience"

    def weight(self, images: int) -> int:
        """What a site with so many training images counts for in the mean: a whole number."""
        if self.weighting == "uniform":
            return 1
        return min(images, self.cap) if self.weighting == "capped" and self.cap else images

    @property
    def buffered(self) -> bool:
        """Whether the rounds are buffered."""
        return self.mode == "buffered"

    def replies(self, sites: int) -> int:
        """The replies that a round of so many sites waits for."""
        most = self.cohort or sites
        return (self.buffer or max(1, most // 2)) if self.buffered else most

    def models(self, sites: int) -> int:
        """The most models that replies of one round of so many sites can come from."""
        if not self.buffered:
            return 1
        older = self.replies(sites) if self.max_staleness is None else self.max_staleness
        return 1 + min(older, self.replies(sites))

    def too_stale(self, staleness: int) -> str:
        """Why a reply does not count whose model was so many rounds old."""
        most = self.max_staleness
        return f"its model was {staleness} rounds old, and rounds.max_staleness is {most}"

    @property
    def present(self) -> int:
        """How many sites must be there before a synchronous round can begin."""
        return self.quorum or self.cohort or 1

    def needed(self, asked: int) -> int:
        """Good replies that a round of `asked` clients needs: coins may draw fewer than the quorum,
        and the same ones when the round is repeated."""
        return asked if self.quorum is None else min(self.quorum, asked)

    def check(self, sites: int | None) -> list[Problem]:
        """Settings that `sites` sites cannot satisfy; None: their number is not known yet."""
        problems = []
        most = sites if self.cohort is None else self.cohort
        problems += self._check_buffer(most)
        if sites is not None and self.cohort is not None and self.cohort > sites:
            cause = f"a cohort of {self.cohort} cannot be drawn from {sites} sites"
            cure = f"lower rounds.cohort to {sites} or fewer, or leave it out to take all"
            problems.append(Problem("rounds.cohort", cause, cure))
        if most is not None and self.quorum is not None and self.quorum > self.replies(most):
            most = self.replies(most)
            cause = f"a cohort of {most} cannot give {self.quorum} good replies"
            if self.buffered:
                cause = f"a buffer of {most} replies cannot have {self.quorum} good ones"
            cure = f"lower rounds.quorum to {most} or fewer, or leave it out to need every site"
            problems.append(Problem("rounds.quorum", cause, cure))
        if self.weighting == "capped" and self.cap is None:
            cause = "sites are to count for a capped number of images, and no cap is set"
            cure = "set rounds.cap, for example to the median of the sites' numbers of images"
            problems.append(Problem("rounds.cap", cause, cure))
        if self.weighting != "capped" and self.cap is not None:
            cause = f"rounds.weighting is '{self.weighting}', so a cap would be without effect"
            cure = "set rounds.weighting = 'capped', or leave it out"
            problems.append(Problem("rounds.cap", cause, cure))
        if self.keep_by is not None and not self.compared:
            cause = "the last round is kept, whatever its figures"
            cure = "set rounds.keep = 'best' or rounds.patience, or leave it out"
            problems.append(Problem("rounds.keep_by", cause, cure))
        return problems

    def _check_buffer(self, most: int | None) -> list[Problem]:
        """Settings of the buffer, with at most so many sites that train at the same time."""
        without = [name for name in ("buffer", "max_staleness") if getattr(self, name) is not None]
        if not self.buffered:
            cause = "rounds are synchronous, so this would be without effect"
            cure = "set rounds.mode = 'buffered', or leave it out"
            return [Problem(f"rounds.{name}", cause, cure) for name in without]
        if most is not None and self.buffer is not None and self.buffer > most:
            cause = f"a buffer of {self.buffer} replies cannot be filled by {most} sites"
            cure = f"lower rounds.buffer to {most} or fewer"
            return [Problem("rounds.buffer", cause, cure)]
        return []
