"""FedMD: sites with networks of their own learn from what they all think of public images."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Lessons, Local, Mean, State, algorithms
from fedsight.algorithms.kept_networks import KeptNetworks
from fedsight.algorithms.public_scores import PublicScores, mean_scores
from fedsight.models.base import Network


@algorithms.add("fedmd", paper="Li and Wang 2019 (FedMD), arXiv:1910.03581, algorithm 1")
class FedMD(KeptNetworks, PublicScores):
    """Sites exchange scores of public images, [public], instead of networks.

    In each round a site's network learns the public images until it scores them as the sites did on
    average in the last round (digest), then the site's own images (revisit). After that the site
    sends its scores, which are the logits, as whole numbers. Their sum is exact, and its mean over
    the round's sites, each counted once, is the new consensus. In the first round there is none.

    The paper also trains on labels of the public set before the first round; here it has none.
    """

    beside: ClassVar[str] = "consensus"  # [public images, classes]

    digest: int = Field(1, ge=0)  # passes over the public images in a round; 0: all learn alone

    def equip(self, network: Network, classes: int, public: int) -> Network:
        """The network, and beside its layers the consensus."""
        return self.with_beside(network, (public, classes))

    def told(self, local: Local) -> Tensor | None:
        """The consensus; before there is one all of it is zero."""
        return local.start if bool(local.start.any()) else None

    @property
    def lessons(self) -> Lessons:
        """As a site learns its own images."""
        return Lessons(self.digest, None)

    def distance(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean absolute difference from the consensus (as in the authors' code)."""
        return (scores - targets).abs().mean()

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The mean of the scores over the sites; without any the consensus stays as it was."""
        found = mean_scores(mean)
        return vector if found is None else found.reshape(-1), state
