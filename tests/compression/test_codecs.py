"""Codecs: what is sent is as long as the part's spec says, and decodes to what it promises."""

from __future__ import annotations

from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.aggregation.mean import Mean
from fedsight.compression.base import Compression, codecs
from fedsight.core.errors import SiteError
from fedsight.core.types import PartSpec
from fedsight.engines.remote import messages
from fedsight.engines.workers import WorkerEngine
from fedsight.program.program import Speed

VALUES = st.lists(st.floats(-60_000, 60_000, width=32), max_size=40)


@pytest.mark.parametrize("name", codecs.names())
@given(values=VALUES)
def test_what_is_sent_has_the_length_that_is_due(name: str, values: list[float]) -> None:
    codec = codecs.get(name)()
    spec = PartSpec((len(values),), codec=codec)
    sent = spec.encode(torch.tensor(values))
    assert (len(sent), sent.dtype) == spec.encoded
    assert len(messages.pack([sent])) == spec.bytes
    assert spec.decode(sent).shape == (len(values),)


@given(values=VALUES)
def test_float16_is_what_numpy_rounds_to(values: list[float]) -> None:
    codec = codecs.get("float16")()
    given_values = np.asarray(values, np.float32)
    found = codec.decode(codec.encode(torch.from_numpy(given_values)), len(values))
    assert np.array_equal(found.numpy(), given_values.astype(np.float16).astype(np.float32))


def test_an_exact_codec_changes_no_bit() -> None:
    values = torch.tensor([0.1, -3.0, float("nan"), float("inf"), 1e-40])
    for name in codecs.names():
        codec: Compression = codecs.get(name)()
        if codec.exact:
            decoded = codec.decode(codec.encode(values), 5)
            assert torch.equal(decoded.view(torch.int32), values.view(torch.int32))


def test_a_value_too_large_for_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="above 65,504"):
        codecs.get("float16")().encode(torch.tensor([1.0, 70_000.0]))


def test_parts_cross_a_line_as_they_were_encoded() -> None:
    spec = PartSpec((5,), codec=codecs.get("float16")())
    sent = spec.encode(torch.arange(5.0))
    data = bytearray(messages.pack([sent]))
    assert torch.equal(messages.unpack_parts(data, {"delta": spec})["delta"], sent)
    with pytest.raises(ValueError, match="9 bytes, not 10"):
        messages.unpack_parts(data[:-1], {"delta": spec})


@pytest.mark.parametrize(
    "sent", [torch.zeros(9, dtype=torch.uint8), torch.zeros(5), "text", torch.zeros(2, 5)]
)
def test_a_part_of_another_form_is_refused_and_nothing_is_added(sent: Any) -> None:
    spec = PartSpec((5,), codec=codecs.get("float16")())
    total = Mean().aggregator({"delta": spec}, 2)
    with pytest.raises(SiteError, match="site 'ward'"):
        total.add({"delta": sent}, 1, "ward")
    assert total.count == 0
    assert not total.tensors["delta"].any()


def test_a_run_with_float16_sends_half_and_learns_as_much() -> None:
    diary, half = federations.Diary(), federations.Diary()
    whole = federations.learn(federations.federation(), diary=diary)
    of = federations.federation(compression={"name": "float16"})
    halved = federations.learn(of, diary=half)
    assert [2 * line["bytes_up"] for line in half.lines] == [x["bytes_up"] for x in diary.lines]
    assert [line["bytes_down"] for line in half.lines] == [x["bytes_down"] for x in diary.lines]
    assert torch.allclose(halved.vector, whole.vector, atol=1e-3)
    assert not torch.equal(halved.vector, whole.vector)
    engine = WorkerEngine(of, Speed(workers=2))
    try:
        assert federations.sha(federations.learn(of, engine).vector) == federations.sha(
            halved.vector
        )
    finally:
        engine.close()
