"""A site's own recogniser of a task whose answers are made large enough: its levels come from test
images of the site that chose nothing, and nothing leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_recognisers import Make, delivered, ended, halved, make, of
from typer.testing import CliRunner

from fedsight.cli.app import app
from fedsight.core.errors import DataError
from fedsight.evaluation.trust.images import images_of_site
from fedsight.governance.ledger import Ledger
from fedsight.inference import predict, saved
from fedsight.inference.trusted import Cover

__all__ = ["make"]


def test_its_intervals_are_made_of_test_images_that_did_not_choose_it(
    make: Make, tmp_path: Path
) -> None:
    site, what = make(), of(tmp_path, task={"name": "ordinal"})
    ended(site, what)
    before = len(Ledger(site.home).entries())
    folder, facts = delivered(site)
    assert len(Ledger(site.home).entries()) == before
    federation, one, other = halved(site, what)
    rest = federation.testing((replace(federation.views[0], indices=other),))
    images = images_of_site(rest, 0)
    assert images is not None
    (fitted,), (cover,), (tested,) = images.fitted, images.cover, images.tested
    used = [place for part in (fitted, cover, tested) for place in part.indices.tolist()]
    assert not {*used} & {*one.tolist()}
    told = facts["trust"]["sets"]
    assert (told["covers"], told["guarantee"]) == ("grades", "site")
    assert told["images"] == len(fitted) + len(cover) == 20
    assert told["tested"] == len(tested) == 20
    model, test = saved.load(folder), federation.dataset.test
    found = predict.predict_pixels(model, test.images.read(tested.indices), cover=Cover(0.9))
    right = [
        model.classes[label] in (answer.classes or ())
        for label, answer in zip(tested.labels().tolist(), found, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(told["coverage"])
    image = next((tmp_path / "images" / "test" / "bee").glob("*.png"))
    asked = ["predict", str(folder), str(image), "--json", "--coverage"]
    (answer,) = json.loads(CliRunner().invoke(app, [*asked, "0.9"]).output)
    assert set(answer["set"]) <= {"ant", "bee"}
    refused = CliRunner().invoke(app, [*asked, "0.99"])
    assert isinstance(refused.exception, DataError)
    assert "at least 396 test images" in refused.exception.cure  # half of a half of them
