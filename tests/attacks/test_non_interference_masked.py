"""Nothing outside a site's masks depends on its images: secure aggregation, and shares of noise.

As `test_non_interference.py`, with a coordinator that asks the questions of secure aggregation in
any order, for any lists, more than once, and malformed; everybody else in its rounds colludes. The
keys of both sites are drawn alike, so that every byte of every answer can be compared, but for the
masked update, whose length is.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked_conversations import Conversation, Randomness, Step

from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.governance.contract import Contract
from fedsight.program.config import parse
from fedsight.program.federation import federate
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
SOURCE = Path(__file__).parent / "parts" / "hidden_images.py"
VARIANTS = ("one", "all", "bright", "broken")
REQUIRED = {"none": "secure_aggregation", "distributed": "distributed_dp"}
SCALES = [0.0, 1.0, 1e12, 1e30, 1e38, float("nan")]
FEW = st.frozensets(st.integers(0, 2))
IN_TURN = ["begin", "share", "confirm", "train", "agree", "unmask"]

steps = st.builds(
    Step,
    kind=st.sampled_from([*IN_TURN, "again", "restart"]),
    scale=st.sampled_from(SCALES),
    round=st.integers(1, 2),
    among=FEW,
    gone=st.frozensets(st.integers(0, 3), max_size=2),
    mangle=st.sampled_from(["", "", "", "cut", "flip", "long", "other"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Step]:
    """Attempts whose steps come in turn, with some dropped, altered, repeated or put elsewhere."""
    found = []
    for _ in range(draw(st.integers(1, 2))):
        scale = draw(st.sampled_from(SCALES))
        found += [Step(kind, scale) for kind in IN_TURN]
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(found) - 1))
        if draw(st.booleans()):
            found.insert(place, draw(steps))
        else:
            found[place] = draw(steps)
    return found


def program(root: Path, mechanism: str) -> Program:
    (root / "plain").mkdir(exist_ok=True)
    sections: dict[str, Any] = {
        "data": {"name": "hidden", "path": str(root / "plain")},
        "split": {"name": "iid", "sites": 4},
        "model": {"name": "small_cnn", "width": 4, "blocks": 1},
        "train": {"batch": 4, "lr": 0.1},
        "secure": {"name": "secagg", "dropout": 0.25},
        "rounds": {"rounds": 2, "weighting": "uniform"},
        "plugins": [str(SOURCE)],
    }
    if mechanism == "distributed":
        sections["privacy"] = {"name": mechanism, "noise_multiplier": 2.0}
    return parse(sections, base=root)[0]


@pytest.fixture
def hold(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[list[Any]]]:
    """What the plain site and another one said, in the same conversation."""
    randomness = Randomness().rule(monkeypatch)

    def both(mechanism: str, variant: str, asked: list[Step]) -> list[list[Any]]:
        of, said = program(tmp_path, mechanism), []
        tag, federation = sum(1 for _ in tmp_path.iterdir()), federate(of)
        for name in ("plain", variant):
            randomness.drawn = 0
            (tmp_path / name).mkdir(exist_ok=True)
            contract: dict[str, Any] = {
                "require": [REQUIRED[mechanism]],
                "figures": "none",
                "plugins": [hashlib.sha256(SOURCE.read_bytes()).hexdigest()],
            }
            if mechanism == "distributed":
                contract["min_noise_multiplier"] = 1.0
            data = {"name": "hidden", "path": str(tmp_path / name)}
            site = attack(f"{tag}-{name}/ward", data, **contract)
            (site.home / "plugins").mkdir()
            shutil.copy(SOURCE, site.home / "plugins")
            said.append(Conversation(site, of, federation).hold(asked).said)
            site.close()
        return said

    return both


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    mechanism=st.sampled_from(sorted(REQUIRED)),
    variant=st.sampled_from(VARIANTS),
    asked=conversations(),
)
def test_nothing_outside_the_masks_depends_on_the_images(
    hold: Callable[..., list[list[Any]]], mechanism: str, variant: str, asked: list[Step]
) -> None:
    one, other = hold(mechanism, variant, asked)
    assert one == other


@pytest.mark.parametrize("mechanism", REQUIRED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_round_is_the_same_with_images_that_cannot_be_trained_on(
    hold: Callable[..., list[list[Any]]], mechanism: str, variant: str
) -> None:
    asked = [Step(kind, 1e30) for kind in IN_TURN]
    one, other = hold(mechanism, variant, asked)
    assert one == other
    assert [kind for kind, fields, data in one if data and "error" not in fields] == [
        "advertise" if kind == "begin" else kind for kind in IN_TURN
    ], "every phase was answered"


def test_a_site_that_tells_what_fails_is_told_apart(
    hold: Callable[..., list[list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same comparison finds the difference where the contract protects nothing."""
    monkeypatch.setattr(Contract, "protected", False)
    one, other = hold("none", "broken", [Step(kind) for kind in IN_TURN])
    assert one != other


def test_a_site_whose_keys_hang_on_its_images_is_told_apart(
    hold: Callable[..., list[list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the answer of a phase says what was trained."""
    weak = SiteSecAgg._record_sum

    def telling(self: SiteSecAgg, lists: Any) -> None:
        weak(self, lists)
        lines = (self._home / "log.jsonl").read_text()
        client = self._current_client()
        client._held[0] = bytes([int("failed" in lines)]) * len(client._held[0])

    monkeypatch.setattr(SiteSecAgg, "_record_sum", telling)
    one, other = hold("none", "broken", [Step(kind) for kind in IN_TURN])
    assert one != other
