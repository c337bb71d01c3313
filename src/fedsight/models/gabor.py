"""Fixed Gabor filters for faces, and a running whitening of their responses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 0.56  # the envelope's deviation in wavelengths: a bandwidth of one octave
ASPECT = 0.8  # the envelope is this much longer along the wave's crests
STRIDE = 2  # responses change slowly, so every second pixel is enough


def gabor(wavelength: float, angle: float, side: int) -> tuple[Tensor, Tensor]:
    """The even and the odd Gabor filter [side, side] (Daugman 1985), each of unit length.

    `wavelength` in pixels, `angle` of the wave in radians. Uniform brightness gives no response.
    """
    steps = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    along = right * math.cos(angle) + down * math.sin(angle)
    across = down * math.cos(angle) - right * math.sin(angle)
    spread = 2 * (WIDTH * wavelength) ** 2
    envelope = torch.exp(-(along**2 + (ASPECT * across) ** 2) / spread)
    phase = 2 * math.pi * along / wavelength
    even, odd = envelope * phase.cos(), envelope * phase.sin()
    even = even - envelope * (even.sum() / envelope.sum())
    return (even / even.norm()).float(), (odd / odd.norm()).float()


class Gabor(nn.Module):
    """Mean filter magnitudes in the cells of a grid: [b, c, h, w] -> [b, filters, rows, columns].

    Square root of the mean magnitude (even and odd filter together, so that a wave's exact place
    does not matter) of each wavelength (pixels) in each of `orientations` directions, over cells of
    `cell` pixels a side. Colours are averaged. The filters are given by a formula: they are neither
    learnt nor sent.
    """

    even: Tensor
    odd: Tensor

    def __init__(self, wavelengths: tuple[float, ...], orientations: int, cell: int) -> None:
        super().__init__()
        self.border = math.ceil(max(wavelengths) / 2)
        self.cell = cell // STRIDE
        pairs = [
            gabor(wavelength, math.pi * turn / orientations, 2 * self.border + 1)
            for wavelength in wavelengths
            for turn in range(orientations)
        ]
        for name, filters in zip(("even", "odd"), zip(*pairs, strict=True), strict=True):
            self.register_buffer(name, torch.stack(filters)[:, None], persistent=False)

    def features(self, height: int, width: int) -> int:
        """The number of features of an image of this size."""
        rows, columns = (math.ceil(side / STRIDE) // self.cell for side in (height, width))
        return len(self.even) * rows * columns

    def forward(self, x: Tensor) -> Tensor:
        """Images of any range; uniform brightness has no effect."""
        grey = x.mean(1, keepdim=True)
        grey = grey - grey.mean((2, 3), keepdim=True)
        wide = F.pad(grey, (self.border,) * 4, mode="replicate")
        even, odd = (F.conv2d(wide, one, stride=STRIDE) for one in (self.even, self.odd))
        strength = (even.square() + odd.square() + 1e-6).sqrt()
        return F.avg_pool2d(strength, self.cell).sqrt()


class Whiten(nn.Module):
    """Subtracts the running mean of [b, d] and equalises variances, in training too.

    Divides by the Cholesky factor of the running covariance plus `ridge` times its mean variance:
    cosines of the results are those of PCA whitening, softened in directions with little variance.
    It keeps running means of the features and of their products. Averaged over sites, these give
    the mean and the covariance over all images, including differences between sites. `seen` counts
    batches, so that the first ones are averaged evenly. In training it whitens by what it is told
    to `hold`, or else by its running means, which soon are those of a site's own few people.
    """

    mean: Tensor
    product: Tensor
    seen: Tensor

    def __init__(self, features: int, ridge: float, rate: float = 0.1) -> None:
        super().__init__()
        self.ridge = ridge
        self.rate = rate
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("product", torch.eye(features))
        self.register_buffer("seen", torch.zeros(1))
        self._held: tuple[Tensor, Tensor] | None = None

    def hold(self) -> None:
        """From now on whiten in training by the statistics of this moment, if there are any."""
        self._held = self._statistics() if bool(self.seen > 0) else None

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] -> [b, d] float32, of unit length or less on average."""
        # A Cholesky factor and the solution with it exist in float32 only, and products rounded to
        # bfloat16 are no covariance.
        with torch.autocast(x.device.type, enabled=False):
            return self._whitened(x.float())

    def _whitened(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                rate = (1 / (self.seen + 1)).clamp(min=self.rate)
                self.mean.lerp_(x.mean(0), rate)
                self.product.lerp_(x.T @ x / len(x), rate)
                self.seen += 1
        held = self._held if self.training else None
        mean, factor = held or self._statistics()
        white: Tensor = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
        scaled: Tensor = white.T / math.sqrt(x.shape[1])
        return scaled

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """The running mean [d] and the Cholesky factor of the covariance and its ridge [d, d].

        The mean is a copy, because the buffer changes in place before the backward pass.
        """
        covariance = self.product - torch.outer(self.mean, self.mean)
        variance = covariance.diagonal()
        covariance.diagonal().add_(self.ridge * variance.mean() + 1e-6)
        return self.mean.clone(), torch.linalg.cholesky(covariance)
