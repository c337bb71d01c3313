"""A program whose codec takes gigabytes in a site's job, whatever the size of its network.

A site makes a model of the one before and a difference, in the process that answers the
coordinator. Blocks of any length were filled up with zeros, so that a message of some bytes took as
much memory as the program liked. And each step of a codec may write as many bytes as there are
values, so that with any number of steps the longest difference that may come, which is allocated
with its first piece, was as long as the program liked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program
from torch.profiler import ProfilerActivity, profile

from fedsight.compression.base import LARGEST_BLOCK, Codec, codecs
from fedsight.compression.difference import Difference
from fedsight.compression.pipeline import Pipeline
from fedsight.compression.settings import MOST_STEPS
from fedsight.core.package import installed
from fedsight.deploy.site.incoming import lengths_of

WIDE = 1 << 24  # values of a block
LONG = 1000  # steps
BLOCKS = pytest.mark.parametrize("name", ["sign", "quantise"])


def unbounded(name: str, **settings: Any) -> Codec:
    """A codec with settings that nobody has compared with their bounds."""
    kind = codecs.get(name)
    return kind.model_construct(**settings)


def taken(step: Codec) -> int:
    """The most bytes that an operation takes while ten values are made of a message."""
    held = torch.zeros(10)
    of = Difference(Pipeline([step]), len(held), len(held))
    message = of.encode(held, held + 1, 1)
    assert len(message) < 100
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        assert bool(of.decode(held, message).isfinite().all())
    return max(one.cpu_memory_usage for one in seen.key_averages())


@BLOCKS
def test_a_short_message_takes_what_a_block_of_any_length_takes(name: str) -> None:
    assert taken(unbounded(name, block=WIDE)) >= 4 * WIDE


@BLOCKS
def test_with_the_longest_block_of_ours_it_takes_little(name: str) -> None:
    assert taken(codecs.get(name)(block=LARGEST_BLOCK)) <= 8 * LARGEST_BLOCK


def longest(steps: Sequence[Codec], tmp_path: Path) -> float:
    """The longest difference that a site waits for, in lengths of its model."""
    layout = known(program(draw(tmp_path / "images", noise_images(6)))).layout
    of = Difference(Pipeline(steps), layout.shared.stop, layout.travelling.stop)
    found = lengths_of(layout, [], of)
    return found["difference"] / found["vector"]


def test_steps_without_number_announce_a_difference_without_bound(tmp_path: Path) -> None:
    assert longest([codecs.get("top-k")(share=1.0)] * LONG, tmp_path) > 50


def test_as_many_as_ours_takes_announce_little_more_than_models(tmp_path: Path) -> None:
    assert longest([codecs.get("top-k")(share=1.0)] * MOST_STEPS, tmp_path) < 2


@pytest.mark.parametrize(
    ("steps", "where"),
    [
        ([{"name": "sign", "block": 2 * LARGEST_BLOCK}], "codec.down.steps.0.block"),
        ([{"name": "quantise", "block": 2 * LARGEST_BLOCK}], "codec.down.steps.0.block"),
        (["rotate"] * (MOST_STEPS + 1), "codec.down"),
    ],
)
def test_a_site_takes_no_part_in_such_a_program(
    attack: Callable[..., AttackedSite], tmp_path: Path, steps: list[Any], where: str
) -> None:
    images = draw(tmp_path / "images", noise_images(6))
    of = program(images)
    table = of.table()
    table["codec"]["down"]["steps"] = steps
    fields = {"run": "run1", "program": table, "fingerprint": of.fingerprint, "sites": 3}
    fields["package"] = installed().table()
    answer = attack("ward", images).ask("propose", fields)[0]
    assert answer["error"].startswith(f"{where}: ")
