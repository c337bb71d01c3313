"""A gallery's threshold is chosen by the rule that people are then matched by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.core.errors import DataError, StoreError
from fedsight.inference.gallery import Gallery
from fedsight.inference.recognition import calibrate, enrol, guarantee, mean
from fedsight.tasks.faces import verification

FAR = 0.01
BIN = 3.2 / verification.BINS


def crowd(count: int, images: int, seed: int) -> list[Tensor]:
    """People [images, d] who differ in a few directions, and their images in many.

    A mean of images is nearer to those few, and so more like other people's.
    """
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 1, 12, generator=draws) * (torch.arange(12) < 4)
    vectors = centres + 0.9 * torch.randn(count, images, 12, generator=draws)
    return list(torch.nn.functional.normalize(vectors, dim=-1))


def gallery(*templates: int) -> Gallery:
    """Somebody enrolled with so many images, and so on."""
    made = Gallery("model")
    for number, count in enumerate(templates):
        enrol(made, str(number), torch.eye(4)[:1].repeat(count, 1))
    return made


def single_pairs(people: list[Tensor]) -> float:
    """The threshold from pairs of single images."""
    names = torch.arange(len(people)).repeat_interleave(len(people[0]))
    counts = verification.verify(torch.cat(people), names)["pairs"].total.sum(axis=0)
    return verification.threshold_at(counts, FAR)


def accepted(people: list[Tensor], size: int, threshold: float | None) -> float:
    """How often an image passes for another person who is enrolled with `size` images."""
    means = torch.stack([mean(one[:size]) for one in people])
    scores = torch.stack([one[size:] @ means.T for one in people])  # [people, images, people]
    others = ~torch.eye(len(people), dtype=torch.bool)
    assert threshold is not None
    return float((scores.permute(0, 2, 1)[others] >= threshold).double().mean())


def test_with_one_template_each_it_is_the_threshold_of_pairs_of_images() -> None:
    people, kept = crowd(20, 3, seed=0), gallery(1, 1, 1)
    assert calibrate(kept, people, FAR) == 20 * 19 // 2 * 9
    assert kept.threshold == pytest.approx(single_pairs(people), abs=1e-9)
    assert (kept.far, kept.calibrated) == (FAR, [1])


def test_of_people_enrolled_with_several_images_as_many_pass_as_were_allowed() -> None:
    kept, others = gallery(5, 5), crowd(150, 10, seed=1)
    people = crowd(150, 10, seed=2)
    calibrate(kept, people, FAR)
    assert accepted(others, 5, kept.threshold) == pytest.approx(FAR, rel=0.15)
    assert accepted(others, 5, single_pairs(people)) > 1.5 * FAR  # which it was chosen from before


def test_the_rate_is_that_of_all_who_are_enrolled_however_many_images_they_gave() -> None:
    people, kept = crowd(60, 8, seed=3), gallery(1, 1, 4)
    calibrate(kept, people, FAR)
    assert kept.calibrated == [1, 4]
    groups = torch.stack([mean(one.view(2, 4, 12)) for one in people])  # [people, 2, d]
    rates = []
    for means in (torch.stack(people), groups):
        scores = torch.einsum("ind,jmd->ijnm", torch.stack(people), means)
        rates.append(_share(scores[~torch.eye(60, dtype=torch.bool)], kept.threshold))
    assert (2 * rates[0] + rates[1]) / 3 == pytest.approx(FAR, rel=0.05)
    low, high = gallery(1), gallery(4)
    for one in (low, high):
        calibrate(one, people, FAR)
    thresholds = [one.threshold or 0.0 for one in (low, kept, high)]
    assert thresholds == sorted(set(thresholds))


def _share(scores: Tensor, threshold: float | None) -> float:
    counts = np.stack([verification.count(scores.flatten()).numpy()] * 2)
    assert threshold is not None
    return verification.rates_at(counts, threshold)[0]


def test_a_rate_that_cannot_be_told_is_refused_and_the_old_threshold_stays() -> None:
    kept = gallery(3)
    kept.threshold, kept.far = 0.5, 0.1
    with pytest.raises(DataError, match=r"are 0 comparisons .* with 3 of another's"):
        calibrate(kept, crowd(50, 2, seed=4), FAR)  # nobody has three images
    with pytest.raises(DataError, match="162 comparisons"):
        calibrate(kept, crowd(3, 9, seed=5), 0.001)
    assert (kept.threshold, kept.far) == (0.5, 0.1)
    with pytest.raises(StoreError, match="nobody is enrolled"):
        calibrate(gallery(), crowd(50, 2, seed=4), FAR)


def alike(count: int, draws: torch.Generator) -> list[Tensor]:
    """People in all directions, with five images each that hardly differ."""
    centres = torch.nn.functional.normalize(torch.randn(count, 1, 8, generator=draws), dim=-1)
    images = centres + 0.01 * torch.randn(count, 5, 8, generator=draws)
    return list(torch.nn.functional.normalize(images, dim=-1))


def realised(
    rule: Callable[[Gallery, list[Tensor], float], int], people: int, far: float
) -> Tensor:
    """The share of strangers who pass for somebody enrolled, for each of many draws of all."""
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(250):
        kept = Gallery("model")
        for number, vectors in enumerate(alike(3, draws)):
            enrol(kept, str(number), vectors[:1])
        rule(kept, alike(people, draws), far)
        assert kept.threshold is not None
        enrolled = torch.tensor([one[0] for one in kept.people.values()])
        strangers = torch.cat(alike(100, draws))
        found.append(float((strangers @ enrolled.T >= kept.threshold).double().mean()))
    return torch.tensor(found)


def test_strangers_pass_no_more_often_than_is_guaranteed() -> None:
    """The people who are compared may be few: the rate holds on average over all draws of them."""
    for people, far in ((9, 0.1), (12, 0.1), (4, 0.2)):
        found = realised(guarantee, people, far)
        assert float(found.mean()) <= far + 3 * float(found.std()) / len(found) ** 0.5


def test_an_estimate_from_few_people_lets_more_pass_than_was_asked() -> None:
    """Many comparisons of three people say little of others: the attack on the guarantee."""
    found = realised(calibrate, 3, 0.1)
    assert float(found.mean()) > 1.5 * 0.1 + 3 * float(found.std()) / len(found) ** 0.5


def test_too_few_people_for_a_guarantee_name_how_many_are_enough() -> None:
    kept, draws = gallery(1), torch.Generator().manual_seed(0)
    kept.threshold = 0.5
    people = [torch.nn.functional.normalize(one[:, :4], dim=-1) for one in alike(99, draws)]
    with pytest.raises(DataError, match="98 people are too few") as error:
        guarantee(kept, people[:98], FAR)
    assert "at least 99," in error.value.cure
    assert kept.threshold == 0.5
    assert guarantee(kept, people, FAR) == 99 * 5
    assert kept.guaranteed
    with pytest.raises(StoreError, match="nobody is enrolled"):
        guarantee(gallery(), people, FAR)
