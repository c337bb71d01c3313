"""Images are made to look alike, each from its own pixels alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.data.base import Preprocess
from fedsight.data.look import Look, matched, quantiles_of, template_wrong
from fedsight.data.sources.folder import Folder

MEAN, STD = (0.5, 0.4), (0.25, 0.2)


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, 2, 9, 7, generator=torch.Generator().manual_seed(5))


def prepared(look: Look | None) -> Preprocess:
    return Preprocess(2, 9, 7, "stretch", MEAN, STD, look=look)


def test_each_image_has_mean_zero_and_deviation_one() -> None:
    found = prepared(Look("image")).normalise(pixels())
    torch.testing.assert_close(found.mean((2, 3)), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((2, 3), correction=0), torch.ones(3, 2))


@pytest.mark.parametrize("look", [Look("image"), Look("histogram", quantiles_of("normal"))])
def test_brightness_and_contrast_make_no_difference(look: Look) -> None:
    seen = prepared(look).normalise(pixels())
    darker = prepared(look).normalise(pixels() * 0.4 + 0.1)
    torch.testing.assert_close(darker, seen, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("look", [Look("image"), Look("histogram", quantiles_of("uniform"))])
def test_no_other_image_of_a_batch_matters(look: Look) -> None:
    whole = prepared(look).normalise(pixels())
    for number in range(3):
        alone = prepared(look).normalise(pixels()[number : number + 1])
        assert torch.equal(alone[0], whole[number])


@pytest.mark.parametrize("look", [Look("image"), Look("histogram", quantiles_of("uniform"))])
def test_a_blank_image_stays_finite(look: Look) -> None:
    assert bool(prepared(look).normalise(torch.zeros(1, 2, 9, 7)).isfinite().all())


def test_values_get_the_template_s_distribution_and_keep_their_order() -> None:
    """Against sorting: the n-th smallest of n values gets the template's quantile at its middle."""
    template = (0.0, 0.1, 0.2, 0.9, 1.0)
    x = pixels(2)
    found = matched(x, torch.tensor(template))
    count = x.shape[2] * x.shape[3]
    places = (np.arange(count) + 0.5) / count
    due = np.interp(places, np.linspace(0, 1, len(template)), template)
    for image in range(2):
        for channel in range(2):
            order = x[image, channel].flatten().argsort()
            values = found[image, channel].flatten()[order].numpy()
            np.testing.assert_allclose(values, due, atol=1e-6)


def test_equal_values_stay_equal_and_between_the_template_s_ends() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    found = matched(x, torch.tensor((0.0, 1.0))).flatten().tolist()
    assert found == pytest.approx([0.375, 0.375, 0.375, 0.875])


def test_a_stated_distribution_has_its_mean_and_rises() -> None:
    quantiles = quantiles_of("normal")
    assert not template_wrong(quantiles)
    assert quantiles[0] == pytest.approx(0.0, abs=1e-9)
    assert quantiles[-1] == pytest.approx(1.0, abs=1e-9)
    assert quantiles[len(quantiles) // 2] == pytest.approx(0.5)


@pytest.mark.parametrize("look", [None, Look("image"), Look("histogram", (0.0, 0.25, 1.0))])
def test_the_look_is_stored_with_the_preprocessing(look: Look | None) -> None:
    table = asdict(prepared(look))
    assert Preprocess.of(json.loads(json.dumps(table))) == prepared(look)


WRONG: list[dict[str, Any]] = [
    {"kind": "smell", "template": []},
    {"kind": "histogram", "template": []},
    {"kind": "histogram", "template": [0.0, 2.0]},
    {"kind": "histogram", "template": [0.5, 0.1]},
    {"kind": "histogram", "template": [0, 1]},
    {"kind": "histogram", "template": [0.0, float("nan")]},
    {"kind": "histogram", "template": [0.0] * 5000},
    {"kind": "image", "template": [0.0, 1.0]},
    {"kind": "image"},
    {},
]


@pytest.mark.parametrize("table", WRONG)
def test_what_is_not_a_look_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Preprocess.of({**asdict(prepared(None)), "look": table})


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"template": "normal"}, "a template would be without effect"),
    ({"harmonise": "histogram", "template": [0.4, 0.2]}, "not a list of quantiles"),
    ({"site_mean": [0.5], "site_std": [0.2]}, "a site's numbers would be without effect"),
    ({"harmonise": "site", "site_mean": [0.5]}, "only useful together"),
]


@pytest.mark.parametrize(("given", "cause"), SETTINGS)
def test_settings_without_effect_or_sense_are_refused(
    tmp_path: Path, given: dict[str, Any], cause: str
) -> None:
    (problem,) = Folder.model_validate({"path": tmp_path, **given}).check()
    assert cause in problem.cause
    assert problem.cure
