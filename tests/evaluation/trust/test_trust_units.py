"""What belongs together counts once for a guarantee: people over sites, and images of a patient."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch

from fedsight.evaluation.trust.cover_counts import _by_origin
from fedsight.evaluation.trust.covering import by_class
from fedsight.evaluation.trust.images import trust_images
from fedsight.evaluation.trust.risk import ALL, Losses, Risk, level
from fedsight.evaluation.trust.units import batches, grouped, of_one_site
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import View
from fedsight.tasks.covering.grades import Grades
from fedsight.tasks.covering.levels import STEPS, UNIT, Tally, summed
from fedsight.tasks.faces.task import FaceRecognition
from fedsight.tasks.ordinal import Ordinal


def people_at_all_sites(count: int, images: int = 3) -> Federation:
    """A federation whose sites all see the pictures of these people, each in its own way."""
    shift = {"kind": "contrast", "strength": 0.5}
    made: Federation = federations.federation(
        data={"train": 60, "test": count * images}, shift=shift
    )
    object.__setattr__(made.program, "task", FaceRecognition())
    labels = np.arange(count * images) // images
    test = replace(made.dataset.test, labels=labels.astype(np.int64))
    found: Federation = replace(made, dataset=replace(made.dataset, test=test))
    return found


def pairs(federation: Federation, data: list[SiteData]) -> tuple[int, Counter[int]]:
    """How many pairs sites make of their people, and at how many sites each person is."""
    found = 0
    seen: Counter[int] = Counter()
    for _, images in _by_origin(data):
        people = {person for one in images for person in one.labels().tolist()}
        found += len(people) // 2
        seen.update(people)
    return found, seen


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("people", [10, 36])
def test_a_person_is_at_one_site_and_in_one_pair(people: int, apart: bool) -> None:
    """Sites that all see everybody made a pair of two people each, and one half's odd ones were
    left out: of 36 people 18 are held out, which are 9 pairs, as the message for too few says."""
    federation = people_at_all_sites(people)
    images = trust_images(federation, apart)
    held, seen = pairs(federation, [*images.fitted, *images.cover])
    assert set(seen.values()) == {1}
    assert (len(seen), held) == (people // 4 * 2, people // 4)
    shown, tested = pairs(federation, [*images.tested])
    assert set(tested.values()) == {1}
    assert shown == (people - len(seen)) // 2  # of 10 people 6, as an even number is held out
    assert not set(seen) & set(tested)
    pictures = Counter(images.tested[0].labels().tolist())
    assert set(pictures.values()) == {3}  # none is lost


def test_units_that_sites_share_are_divided_evenly_and_others_stay() -> None:
    views = [View(0, np.arange(12)), View(1, np.arange(12)), View(2, np.arange(6, 16))]
    found = of_one_site(views, lambda place: place // 2, seed=0)
    places = [place for view in found for place in view.indices.tolist()]
    assert sorted(places) == [*range(16)]
    assert set(range(12, 16)) <= set(found[2].indices.tolist())
    for view in found:
        assert set(Counter(place // 2 for place in view.indices.tolist()).values()) <= {2}
    both = of_one_site(views[:2], lambda place: place, seed=0, together=2)
    assert all(len(view.indices) % 2 == 0 for view in both)


def patients(count: int, images: int) -> Federation:
    """A federation whose test images are of these patients."""
    made: Federation = federations.federation(data={"train": 60, "test": count * images})
    object.__setattr__(made.program, "task", Ordinal())
    names = tuple(f"p{place // images}" for place in range(count * images))
    test = replace(made.dataset.test, groups=names)
    found: Federation = replace(made, dataset=replace(made.dataset, test=test))
    return found


def test_images_of_a_patient_are_one_unit() -> None:
    federation = patients(12, 5)
    images = trust_images(federation, False)
    assert grouped(images.tested)
    assert not grouped(trust_images(federations.federation(), False).tested)
    (data,) = images.tested
    found = [*batches(data, whole=False)]
    assert len(found) == 6
    for chunks, one in found:
        assert one
        places = data.indices[torch.cat(chunks)].tolist()
        assert len({place // 5 for place in places}) == 1


def test_a_patient_loses_what_his_images_do_on_average() -> None:
    tally = Tally.nothing(2)
    for places in ([5, 9], [7], [2, 3, 4]):
        tally.add(0, torch.tensor(places))
        tally.add_size(torch.tensor(places))
    one = tally.as_one()
    assert one.units.tolist() == [1, 0]
    assert one.sized == 1
    exact = tally.losses[0].double() / 3
    assert bool((one.losses[0] >= exact).all())
    assert bool((one.losses[0] < exact + 1).all())
    assert bool((one.losses[0].diff() >= 0).all())
    assert int(one.losses[0, -1]) <= UNIT
    assert not int(one.losses[1].sum())
    nothing = Tally.nothing(2).as_one()
    assert (nothing.units.tolist(), nothing.sized) == ([0, 0], 0)


def of_single_places(places: torch.Tensor) -> Tally:
    """The tally of images of one place each, [n]: at once, as thousands are added up."""
    found = Tally.nothing(1)
    found.units[0] = len(places)
    found.losses[0] = UNIT * (places[:, None] < torch.arange(STEPS)).sum(0)
    return found


def test_images_of_one_place_each_are_added_at_once_as_one_by_one() -> None:
    places = torch.tensor([0, 7, 7, 40, STEPS - 1])
    one_by_one = Tally.nothing(1)
    for place in places:
        one_by_one.add(0, place[None])
    at_once = of_single_places(places)
    assert torch.equal(at_once.units, one_by_one.units)
    assert torch.equal(at_once.losses, one_by_one.losses)


def loss_of_new_patients(as_one: bool, held: int = 9, images: int = 50) -> tuple[float, float]:
    """The mean loss of new patients where 0.1 is allowed, and its error: a patient's images are all
    about equally hard."""
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(400):
        hard = torch.rand(held, 1, generator=draws) * STEPS
        places = (hard + 40 * torch.rand(held, images, generator=draws)).long().clamp(max=STEPS - 1)
        tallies = [of_single_places(own) for own in places]
        whole = summed((one.as_one() for one in tallies) if as_one else tallies, 1)
        at = level(int(whole.units[0]), whole.losses[0], 0.9)
        assert at is not None
        new = torch.rand(200, generator=draws) * STEPS + 20
        found.append(float((new < at).double().mean()))
    shares = torch.tensor(found)
    return float(shares.mean()), 3 * float(shares.std()) / math.sqrt(len(found))


def test_new_patients_lose_no_more_than_is_allowed_and_would_if_images_were_counted() -> None:
    mean, error = loss_of_new_patients(as_one=True)
    assert mean <= 0.1 + error
    mean, error = loss_of_new_patients(as_one=False, held=2)  # 100 images, of two patients
    assert mean > 0.2 + error


def test_too_few_groups_are_named_as_such() -> None:
    from fedsight.core.errors import DataError

    tally = Tally.nothing(5)
    tally.units[:] = 2
    risk = Risk(Grades(), "mixture", {"answer": Losses(tally, {})}, grouped=True)
    with pytest.raises(DataError, match="are of 2 groups, each of which counts once") as error:
        risk.levels(0.9)
    assert "at least 9 groups" in error.value.cure
    kept: Any = risk.plain()
    assert Risk.of(kept, Grades(), 4).grouped
    with pytest.raises(ValueError, match="true or false"):
        Risk.of({**kept, "grouped": "false"}, Grades(), 4)


def test_classes_that_are_never_left_out_are_in_no_mean() -> None:
    tally = Tally.nothing(4)
    tally.units[:] = 10
    tally.losses[:, 100:] = 2 * UNIT
    told = by_class(tally, torch.tensor([ALL, 200, ALL]), ("a", "b", "c"), least=1)
    assert told["coverage"] == pytest.approx(0.8)
    assert told["by_class"] == {"a": 1.0, "b": pytest.approx(0.8), "c": 1.0}
    assert told["always"] == ["c"]
