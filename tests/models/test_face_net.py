"""face_net: fixed filters that answer to waves and not to light, and a whitening that averages."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedsight.core.errors import ModelError
from fedsight.core.layout import Kind, Layout
from fedsight.data.fetch.cache import fetch
from fedsight.models.base import models
from fedsight.models.embedding import Embedding
from fedsight.models.gabor import Gabor, Whiten, gabor
from fedsight.models.zoo.face_net import FaceNet


@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2])
def test_filters_are_unit_orthogonal_and_blind_to_even_light(angle: float) -> None:
    even, odd = gabor(6.0, angle, 13)
    assert float(even.norm()) == pytest.approx(1, abs=1e-5)
    assert float(odd.norm()) == pytest.approx(1, abs=1e-5)
    assert float((even * odd).sum()) == pytest.approx(0, abs=1e-5)
    assert float(even.sum()) == pytest.approx(0, abs=1e-5)
    assert float(odd.sum()) == pytest.approx(0, abs=1e-5)


def test_a_wave_is_answered_most_by_its_own_length_and_direction() -> None:
    bank = Gabor((4.0, 8.0), 4, 8)
    across = torch.arange(48.0).expand(48, 48)[None, None]
    strengths = [
        bank(torch.sin(2 * math.pi * across / length)).mean((0, 2, 3)) for length in (4, 8)
    ]
    strengths.append(bank(torch.sin(2 * math.pi * across.mT / 8)).mean((0, 2, 3)))
    assert [int(one.argmax()) for one in strengths] == [0, 4, 6]  # a quarter turn is two of four


def test_brightness_does_not_matter_and_colours_are_averaged() -> None:
    x = torch.rand(2, 1, 24, 20)
    bank = Gabor((4.0,), 4, 8)
    torch.testing.assert_close(bank(x + 3), bank(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bank(x.expand(2, 3, 24, 20)), bank(x))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 9), (17, 31), (56, 46)])
def test_as_many_features_as_said(height: int, width: int) -> None:
    bank = Gabor((4.0,), 3, 8)
    assert bank(torch.rand(1, 1, height, width)).numel() == bank.features(height, width)


def test_sites_statistics_average_to_those_of_all_images() -> None:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=draws) @ torch.randn(6, 6, generator=draws) + 2
    sites = [Whiten(6, 0.1), Whiten(6, 0.1)]
    for site, part in zip(sites, x.split(20), strict=True):
        for batch in part.split(5):
            site(batch)
    mean = (sites[0].mean + sites[1].mean) / 2
    product = (sites[0].product + sites[1].product) / 2
    torch.testing.assert_close(mean, x.mean(0), atol=1e-4, rtol=1e-4)
    expected = torch.cov(x.T, correction=0)
    torch.testing.assert_close(product - torch.outer(mean, mean), expected, atol=1e-3, rtol=1e-3)


def test_what_is_whitened_has_no_mean_and_no_covariance() -> None:
    draws = torch.Generator().manual_seed(1)
    # What varies as little as the ridge is left as it is: here nothing does.
    mixed = torch.eye(5) + 0.1 * torch.randn(5, 5, generator=draws)
    x = torch.randn(500, 5, generator=draws) @ mixed + 3
    white = Whiten(5, 1e-4)
    white(x)
    white.eval()
    z = white(x) * 5**0.5
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-2, rtol=0)
    torch.testing.assert_close(torch.cov(z.T, correction=0), torch.eye(5), atol=5e-2, rtol=0)


def test_fewer_images_than_features_are_no_fault() -> None:
    white = Whiten(50, 3.0)
    assert white(torch.zeros(2, 50)).isfinite().all()
    assert white(torch.rand(1, 50)).isfinite().all()


def test_filters_do_not_travel_and_the_layer_begins_as_no_change() -> None:
    network = FaceNet().build(1, 24, 24, 4, seed=0)
    assert isinstance(network.module, Embedding)
    kinds = {entry.name: entry.kind for entry in Layout.of(network.module).entries}
    assert not any("gabor" in name for name in kinds)
    assert kinds["body.vector.weight"] is Kind.SHARED
    assert kinds["body.whiten.product"] is Kind.BUFFER
    weight = network.module.body.vector.weight
    assert isinstance(weight, torch.Tensor)
    assert torch.equal(weight.detach(), torch.eye(len(weight)))


def test_a_smaller_vector_begins_orthonormal() -> None:
    network = FaceNet(dimension=16, whiten=False).build(3, 24, 24, 4, seed=0)
    weight = dict(network.module.named_parameters())["body.vector.weight"].detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-4, rtol=0)
    assert Layout.of(network.module).length(Kind.BUFFER) == 0


def test_images_smaller_than_a_cell_are_refused() -> None:
    with pytest.raises(ModelError, match=r"data\.size = 8"):
        FaceNet().build(1, 7, 7, 4, seed=0)


TINY = {"backbone": "timm", "architecture": "test_resnet", "taps": ["layer2", "layer3"]}


def test_a_whitened_embedding_begins_as_the_features_that_its_taps_see() -> None:
    model = models.get("embedding")(**TINY, grids=[2, 1], whiten=True, dimension=4096)
    network = model.build(1, 48, 40, 5, seed=0)
    module, x = network.module.eval(), torch.rand(3, 1, 48, 40)
    assert isinstance(module, Embedding)
    with torch.no_grad():
        seen = module.body.features(x)
        vectors = module.body(x)
    assert vectors.shape == (3, seen.shape[1])  # no more than there are features
    torch.testing.assert_close(F.normalize(vectors), F.normalize(seen), atol=1e-4, rtol=0)
    kinds = {entry.name: entry.kind for entry in Layout.of(module).entries}
    assert kinds["body.head.whiten.product"] is Kind.BUFFER
    assert module.head.start.shape == (5, seen.shape[1])


def test_an_embedding_without_taps_is_whitened_before_its_last_layer() -> None:
    model = models.get("embedding")(backbone="small_cnn", whiten=True, dimension=6)
    first, again = (model.build(1, 24, 24, 5, seed=3).module for _ in range(2))
    assert first.embed(torch.rand(2, 1, 24, 24)).shape == (2, 6)
    tensors = dict(first.named_parameters())
    (weight,) = (one for name, one in tensors.items() if name.endswith(".linear.weight"))
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), atol=1e-4, rtol=0)
    assert all(torch.equal(one, tensors[name]) for name, one in again.named_parameters())


def test_published_weights_are_those_of_the_backbone() -> None:
    """By name, and whitened once although norm = "auto" is settled on the way."""
    name = "efficientnet-lite0"
    given = {"backbone": "timm", "architecture": "tf_efficientnet_lite0", "weights": name}
    model = models.get("embedding")(**given, taps=["blocks.1"], whiten=True)
    assert not model.check()
    assert model.fits_published
    wrong = models.get("embedding")(**{**given, "architecture": "tf_efficientnet_lite1"})
    (problem,) = wrong.check()
    assert 'model.backbone = "timm"' in problem.cure
    fetch(name, print)
    plain = models.get("timm")(architecture=given["architecture"], weights=name)
    theirs = plain.build(3, 32, 32, 1000, 0).module.eval()
    network = model.build(3, 32, 32, 5, 0)
    body, x = network.module.eval().body, torch.rand(2, 3, 32, 32)
    assert len([part for part in body.modules() if isinstance(part, Whiten)]) == 1
    with torch.no_grad():
        maps = theirs.blocks[:2](theirs.bn1(theirs.conv_stem(x)))
        expected = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        torch.testing.assert_close(body.features(x), expected, atol=1e-4, rtol=1e-4)


def test_what_is_held_whitens_in_training_whatever_comes_before() -> None:
    draws = torch.Generator().manual_seed(1)
    x, other = (torch.randn(40, 6, generator=draws) * 2 + k for k in (1, 5))
    white = Whiten(6, 0.1)
    white.hold()  # nothing has been seen: the running means are used, as without it
    first = white(x)
    white.hold()
    held = white(x)
    torch.testing.assert_close(held, first)
    white(other)
    assert torch.equal(white(x), held)
    mean = white.mean.clone()
    white.eval()
    assert not torch.allclose(white(x), held, atol=1e-2)  # the running means have gone on
    assert torch.equal(white.mean, mean)
    white.train().hold()
    assert not torch.allclose(white(x), held, atol=1e-2)


def test_whitening_is_computed_in_float32_whatever_the_precision_around_it() -> None:
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(20, 6, generator=draws)
    for given in (x, x.bfloat16()):
        plain, mixed = Whiten(6, 0.1), Whiten(6, 0.1)
        expected = plain(given.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = mixed(given)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        assert torch.equal(mixed.product, plain.product)
