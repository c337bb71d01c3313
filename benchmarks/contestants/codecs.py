"""Codecs of OpenFL, FedLab and Flower on one vector; the last line says what each came to.

    python codecs.py VECTOR.npy REPEATS

Bytes are those of the arrays that a codec returns, and four for each number beside them.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch

Codec = tuple[str, str, Callable[[Any], Any], Callable[[Any], Any]]


def openfl() -> Iterator[Codec]:
    """EDEN, and sparse ternary compression with gzip."""
    pipelines = importlib.import_module("openfl.pipelines")

    def made(name: str, pipeline: Any) -> Codec:
        return (
            "OpenFL",
            name,
            lambda values: pipeline.forward(values),
            lambda sent: pipeline.backward(*sent),
        )

    for bits in (1, 2, 4, 8):
        yield made(f"EDEN, {bits} bits", pipelines.EdenPipeline(n_bits=bits))
    yield made("STC, 5 %", pipelines.STCPipeline(p_sparsity=0.05))


def fedlab() -> Iterator[Codec]:
    """QSGD and top-k."""
    codecs = importlib.import_module("fedlab.contrib.compressor")
    for bits in (4, 8):
        qsgd = codecs.QSGDCompressor(n_bit=bits)
        yield (
            "FedLab",
            f"QSGD, {bits} bits",
            lambda values, qsgd=qsgd: qsgd.compress(torch.from_numpy(values)),
            lambda sent, qsgd=qsgd: qsgd.decompress(sent).numpy(),
        )
    top = codecs.TopkCompressor(0.05)
    size: list[int] = []

    def compress(values: Any) -> Any:
        size[:] = values.shape
        return top.compress(torch.from_numpy(values))

    yield "FedLab", "top-k, 5 %", compress, lambda sent: top.decompress(*sent, tuple(size)).numpy()


def flower() -> Iterator[Codec]:
    """The quantiser of its secure aggregation, whose range is the largest value here."""
    codec = importlib.import_module("flwr.common.secure_aggregation.quantization")
    for bits in (8, 16):
        reach: list[float] = []

        def quantize(values: Any, bits: int = bits, reach: list[float] = reach) -> Any:
            reach[:] = [float(np.abs(values).max())]
            return codec.quantize([values], reach[0], (1 << bits) - 1)

        def restore(sent: Any, bits: int = bits, reach: list[float] = reach) -> Any:
            return codec.dequantize(sent, reach[0], (1 << bits) - 1)[0]

        yield "Flower", f"quantize, {bits} bits", quantize, restore


def size_of(sent: Any) -> int:
    """Bytes of arrays, and four for each number beside them."""
    if isinstance(sent, bytes | bytearray):
        return len(sent)
    if isinstance(sent, np.ndarray):
        return int(sent.nbytes)
    if isinstance(sent, torch.Tensor):
        return sent.numel() * sent.element_size()
    if isinstance(sent, dict):
        return sum(map(size_of, sent.values()))
    if isinstance(sent, list | tuple):
        return sum(map(size_of, sent))
    return 4 if isinstance(sent, int | float) and not isinstance(sent, bool) else 0


def measured(codec: Codec, values: Any, repeats: int) -> dict[str, Any]:
    """Bits a value, error, and speed in MB of float32 a processor second."""
    peer, name, encode, decode = codec
    norm, squares, there, back, sizes = (
        float(np.square(values, dtype=np.float64).sum()),
        [],
        [],
        [],
        [],
    )
    for _ in range(repeats):
        began = time.process_time()
        sent = encode(values.copy())
        encoded = time.process_time()
        found = decode(sent)
        there.append(encoded - began)
        back.append(time.process_time() - encoded)
        sizes.append(size_of(sent))
        away = np.asarray(found, np.float64).reshape(-1)[: len(values)] - values
        squares.append(float(np.square(away).sum()) / norm)
    return {
        "codec": f"{peer}: {name}",
        "bits": 8 * fmean(sizes) / len(values),
        "error": fmean(squares),
        "encode": values.nbytes / min(there) / 1e6,
        "decode": values.nbytes / min(back) / 1e6,
    }


def main() -> None:
    """Measure all codecs of the peers that are installed."""
    torch.set_num_threads(1)
    values, repeats = np.load(sys.argv[1]), int(sys.argv[2])
    found: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for peer in (openfl, fedlab, flower):
        try:
            codecs = list(peer())
        except ImportError as error:
            missing[peer.__name__] = str(error)
            continue
        for codec in codecs:
            try:
                found.append(measured(codec, values, repeats))
            except Exception as error:  # the peer's own, which says what it cannot do
                missing[f"{codec[0]}: {codec[1]}"] = f"{type(error).__name__}: {error}"
    print(json.dumps({"codecs": found, "missing": missing}))


if __name__ == "__main__":
    main()
