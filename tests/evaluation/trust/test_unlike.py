"""Images unlike the training are found, at the false alarms that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsight.evaluation.trust.conformal import covered, histogram, threshold
from fedsight.evaluation.trust.unlike import KEPT, FeatureSums, energy, mixing


def clouds(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes with a common covariance, and the classes."""
    draws = torch.Generator().manual_seed(seed)
    shape = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    labels = torch.randint(0, 3, (images,), generator=draws)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    return centres[labels] + torch.randn(images, 2, generator=draws) @ shape.T, labels


def test_sums_do_not_depend_on_who_has_the_images() -> None:
    features, labels = clouds(1000, 0)
    whole = FeatureSums.of(features, labels, 4)
    site = torch.randint(0, 3, (1000,), generator=torch.Generator().manual_seed(1))
    first, second, third = (
        FeatureSums.of(features[site == one], labels[site == one], 4) for one in range(3)
    )
    total = first + second + third
    for name in ("images", "sums", "products"):
        assert torch.equal(getattr(total, name), getattr(whole, name))
        assert getattr(total, name).dtype == torch.int64
    assert len(whole.fitted().means) == 3  # the fourth class has no image


def test_the_distance_is_mahalanobis_to_the_nearest_class() -> None:
    features, labels = clouds(5000, 2)
    asked = torch.tensor([[4.0, 4.0], [8.0, 1.0], [30.0, -3.0]])
    scores = FeatureSums.of(features, labels, 3).fitted().scores(asked).numpy()
    x, y = features.double().numpy(), labels.numpy()
    means = np.array([x[y == one].mean(0) for one in range(3)])
    covariance = sum((x[y == c] - means[c]).T @ (x[y == c] - means[c]) for c in range(3)) / 4997
    covariance += 0.01 * covariance.trace() / 2 * np.eye(2)
    apart = asked.double().numpy()[:, None] - means
    squares = np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(covariance), apart).min(1)
    assert scores == pytest.approx(squares / (squares + 2), rel=1e-3)


def test_false_alarms_are_as_asked_and_strangers_are_found() -> None:
    fitted = FeatureSums.of(*clouds(2000, 3), 3).fitted()
    limit = threshold(histogram(fitted.scores(clouds(400, 4)[0])), 0.95)
    assert limit is not None
    alarms = float((fitted.scores(clouds(4000, 5)[0]) > limit).double().mean())
    low, high = covered(400, 0.95, 4000)
    assert 1 - high <= alarms <= 1 - low + 1e-9
    assert bool((fitted.scores(torch.tensor([[30.0, 30.0], [-20.0, 4.0]])) > limit).all())


def test_mixing_keeps_distances_and_few_features_as_they_are() -> None:
    assert torch.equal(mixing(3), torch.eye(3))
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(20, 2000, generator=draws)
    ratio = torch.pdist(points @ mixing(2000)) / torch.pdist(points)
    assert mixing(2000).shape == (2000, KEPT)
    assert float((ratio - 1).abs().max()) < 0.3


def test_the_energy_rises_where_no_class_claims_an_image() -> None:
    values = energy(torch.tensor([[9.0, 0.0], [1.0, 0.0], [-5.0, -5.0]]))
    assert values.tolist() == sorted(values.tolist())
    assert bool(((values > 0) & (values < 1)).all())
    free = -torch.logsumexp(torch.tensor([1.0, 0.0]), 0).double()
    assert float(values[1]) == pytest.approx(float(0.5 + 0.5 * free / (free.abs() + 8)))


def test_features_beyond_the_scale_count_as_its_end_here_and_there() -> None:
    """Features near 3000 were learnt as 1024 and asked about as they are, so all were far."""
    features, labels = clouds(500, 6)
    far = features + torch.tensor([3000.0, 0.0])
    fitted = FeatureSums.of(far, labels, 3).fitted()
    assert torch.equal(fitted.scores(far), fitted.scores(far.clamp(max=1024.0)))
    limit = threshold(histogram(fitted.scores(far)), 0.95)
    assert limit is not None
    assert limit < 1
    assert bool((fitted.scores(torch.tensor([[0.0, 0.0]])) > limit).all())
