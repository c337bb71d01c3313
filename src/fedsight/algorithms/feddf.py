"""FedDF: the averaged model learns what the sites' models together think of public images."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedsight.algorithms.base import Lessons, Mean, algorithms
from fedsight.algorithms.public_scores import PublicScores, mean_scores


@algorithms.add("feddf", paper="Lin et al. 2020 (FedDF), arXiv:2006.07242, algorithm 1")
class FedDF(PublicScores):
    """FedAvg, and after each round the coordinator distils the ensemble into the model.

    The teacher is the mean of the logits of the sites' models on the public images, [public], each
    site counted once. The sites compute them, and send them as whole numbers beside the update: so
    the coordinator needs no single model, and sums of updates and of scores can be masked.

    All sites have one network here. The paper also averages and distils several kinds of networks;
    for these there is fedmd.
    """

    distil: int = Field(1, ge=0)  # passes over the public images after each round; 0: FedAvg
    server_lr: float = Field(1e-3, gt=0)  # of Adam at the coordinator, falling to 0 in each round

    def ensemble(self, mean: Mean) -> Tensor | None:
        """The mean logits of the round's models."""
        return mean_scores(mean)

    @property
    def lessons(self) -> Lessons:
        """By Adam, as in the paper."""
        return Lessons(self.distil, self.server_lr)

    def distance(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The divergence KL(softmax(targets), softmax(scores)), mean over the images."""
        student, teacher = scores.log_softmax(1), targets.log_softmax(1)
        return F.kl_div(student, teacher, log_target=True, reduction="batchmean")
