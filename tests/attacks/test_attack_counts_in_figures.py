"""An owner keeps the numbers of images of each class, and lets exact figures leave, as by default.

The confusion matrix of any model has them: the sum of a row is the number of test images of that
class. Declarations and the sums that calibration is made of kept silent about them; figures did
not, in the first round that was measured. Nor did heartbeats of how many images are corrupt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from attacked_site import CLASSES, AttackedSite, draw, known, noise_images, program

from fedsight.deploy.declaration import masked_tests, read_declaration, withheld
from fedsight.deploy.site import opening
from fedsight.deploy.site.figures import COUNTED, FigureRules
from fedsight.governance.contract import Contract

Attack = Callable[..., AttackedSite]
COUNTS = [15, 8]  # test images of each class
WHY_NONE = FigureRules._why_none


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = draw(tmp_path / "images", noise_images(8), noise_images(2 * max(COUNTS), 5))
    last = sorted((folder / "test" / CLASSES[1]).glob("*.png"))
    for path in last[COUNTS[1] :]:
        path.unlink()
    return folder


def measured(site: AttackedSite, images: Path, **sections: Any) -> Mapping[str, Any]:
    """The answer to the first question about figures."""
    of = program(images, **sections)
    declared = site.join(of)["declared"]
    assert declared["labels"] == []
    return site.measure(known(of).initial)


def test_the_confusion_matrix_told_the_counts(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_clause(self: FigureRules, tested: int, bare: bool) -> str:
        why = WHY_NONE(self, tested, bare)
        return "" if why == COUNTED else why

    monkeypatch.setattr(FigureRules, "_why_none", without_the_clause)
    told = measured(attack("ward", images, counts=False), images)
    confusion = np.array(told["metrics"]["confusion"][0])
    assert confusion.sum(1).tolist() == COUNTS


def test_ours_lets_no_exact_figures_leave_then(attack: Attack, images: Path) -> None:
    told = measured(attack("ward", images, counts=False), images)
    assert told["withheld"] == COUNTED
    assert "metrics" not in told


@pytest.mark.parametrize(("counts", "told"), [({}, True), ({"counts": False}, False)])
def test_beside_epsilon_an_owner_says_both(
    attack: Attack, images: Path, counts: dict[str, Any], told: bool
) -> None:
    """Where nothing is said of counts, `figures = "exact"` is what the owner has said."""
    noise = {"privacy": {"name": "local", "noise_multiplier": 1.0}}
    site = attack("ward", images, epsilon=50.0, figures="exact", **counts)
    of = program(images, **noise)
    site.join(of)
    assert ("metrics" in site.measure(known(of).initial)) is told


def test_figures_with_noise_leave_as_before(attack: Attack, images: Path) -> None:
    told = measured(attack("ward", images, counts=False, figures="noised"), images)
    assert "metrics" in told
    assert told["noise"] == Contract(figures="noised").noise_of_figures


def test_masked_sums_for_calibration_leave_as_before(attack: Attack, images: Path) -> None:
    """Inside a sum of all sites they tell nobody's counts, so the site is still asked for them."""
    masks = {"secure": {"name": "secagg"}}
    site, of = attack("ward", images, counts=False), program(images, **masks)
    declared = {"ward": read_declaration(site.join(of)["declared"], "ward")}
    assert withheld(declared) == {"ward": COUNTED}
    assert masked_tests(declared) == {"ward": sum(COUNTS)}
    assert site.measure(known(of).initial)["withheld"] == COUNTED
    plain = attack("plain", images, counts=False)
    declared = {"plain": read_declaration(plain.join(program(images))["declared"], "plain")}
    assert masked_tests(declared) == {}


@pytest.mark.parametrize("counts", [None, False])
def test_heartbeats_tell_what_a_run_is_told(
    images: Path, tmp_path: Path, counts: bool | None
) -> None:
    """By default the numbers of each class and of corrupt images are told."""
    (images / "train" / CLASSES[0] / "broken.png").write_bytes(b"no image")
    home = tmp_path / "lyon"
    home.mkdir()
    data = {"name": "folder", "path": str(images), "size": 8, "corrupt": "skip"}
    contract = {} if counts is None else {"counts": counts}
    (home / "site.toml").write_text(tomli_w.dumps({"data": data, "contract": contract}))
    assert opening.opened(home, "lyon", home / "site.toml", None, {}).error is None
    told = json.loads((home / "declared.json").read_text())
    assert told["train"] == 8
    assert told.get("skipped") == (1 if counts is None else None)
