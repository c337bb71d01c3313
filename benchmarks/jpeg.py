"""Reading JPEGs for training: FedSight beside torchvision's ImageFolder with a DataLoader.

Both bring the same files to 224 pixels in batches of normalised float32, with as many processes.
The repetitions alternate, and each gives a ratio of two measurements made next to one another.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    OURS,
    RESULTS,
    Process,
    await_quiet,
    machine,
    print_table,
    ratios,
    run_contestant,
    spread,
    write_json,
)

SIZE, BATCH = 224, 32
PATIENCE = 300.0  # seconds for one pass; a worker that failed never comes to the barrier
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = {"small": (500, 375), "large": (1600, 1200)}  # width and height of the files


def photos(folder: Path, count: int, shape: tuple[int, int]) -> int:
    """`count` different JPEGs with the grain of a sensor, in two folders; their mean size."""
    import numpy as np
    from PIL import Image

    rng, (width, height) = np.random.default_rng(0), shape
    for number in range(count):
        coarse = rng.integers(0, 256, (height // 25, width // 25, 3)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (height, width, 1))
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        path = folder / f"class-{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return sum(path.stat().st_size for path in folder.rglob("*.jpg")) // count


def _drafted(path: str) -> Any:
    """An opened JPEG that is decoded at the least of its own sizes that is enough."""
    from PIL import Image

    image = Image.open(path)
    image.draft("RGB", (SIZE, SIZE))
    return image


def fedsight(folder: Path, processes: int, draft: bool) -> float:
    """Images a second of worker processes that read batches of their own, as in a simulation."""
    start, end = (multiprocessing.Barrier(processes + 1) for _ in range(2))
    paths = sorted(map(str, folder.rglob("*.jpg")))
    shares = [paths[at::processes] for at in range(processes)]
    workers = [
        multiprocessing.Process(target=_read, args=(share, draft, start, end)) for share in shares
    ]
    for worker in workers:
        worker.start()
    start.wait(PATIENCE)
    began = time.monotonic()
    end.wait(PATIENCE)
    seconds = time.monotonic() - began
    for worker in workers:
        worker.join()
    return len(paths) / seconds


def _read(paths: list[str], draft: bool, start: Barrier, end: Barrier) -> None:
    import torch

    from fedsight.core.allocator import keep_freed_memory
    from fedsight.data.base import Preprocess
    from fedsight.data.images.disk import DiskImages

    class Drafted(DiskImages):
        def origin(self, index: int) -> Any:
            return _drafted(super().origin(index))

        def name(self, index: int) -> str:
            return super().origin(index)

    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker of the engine does
    preprocess = Preprocess(3, SIZE, SIZE, "stretch", MEAN, STD)
    images = (Drafted if draft else DiskImages)(paths, preprocess)

    def all_batches() -> None:
        for indices in torch.arange(len(paths)).split(BATCH):
            made = preprocess.normalise(images.read(indices))
            made.contiguous(memory_format=torch.channels_last)

    all_batches()  # so that files are in memory, and code is loaded
    start.wait()
    all_batches()
    end.wait()


def imagefolder(folder: Path, processes: int, draft: bool) -> float:
    """Images a second of torchvision's ImageFolder in a DataLoader with that many workers."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader

    def loader(path: str) -> Any:
        return _drafted(path).convert("RGB")

    torch.set_num_threads(1)
    steps = [
        transforms.Resize((SIZE, SIZE)),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    data = ImageFolder(
        str(folder), transforms.Compose(steps), loader=loader if draft else default_loader
    )
    batches: Iterable[Any] = DataLoader(data, BATCH, num_workers=processes, persistent_workers=True)
    seconds = 0.0
    for _ in range(2):  # the first time, files come into memory and workers start
        began = time.monotonic()
        seen = sum(len(x) for x, _ in batches)
        seconds = time.monotonic() - began
    return seen / seconds


CONTESTANTS: dict[str, Callable[[Path, int, bool], float]] = {
    "fedsight": fedsight,
    "imagefolder": imagefolder,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for quiet")
    parser.add_argument("--out", type=Path, default=RESULTS / "jpeg.json")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--draft", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        rate = CONTESTANTS[given.contestant](given.folder, given.processes, given.draft)
        print(json.dumps({"images_per_second": rate}))
        return
    found: dict[str, Any] = {}
    rows = []
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as place:
            size = photos(Path(place), given.images, shape)
            for draft in (False, True):
                rates = measured(given, place, draft)
                apart = ratios(rates["fedsight"], rates["imagefolder"])
                key = f"{name}, {'draft' if draft else 'whole'}"
                found[key] = {"shape": shape, "bytes": size, "images_per_second": rates}
                found[key] |= {"ratio": median(apart), "ratios": apart}
                rows.append([key, *(spread(one, 0) for one in rates.values()), spread(apart)])
    title = f"JPEGs to {SIZE} pixels, images a second, {given.processes} processes"
    print_table(title, ["files", *CONTESTANTS, "ratio"], rows)
    setup = {"images": given.images, "repeats": given.repeats, "processes": given.processes}
    write_json(given.out, {"machine": machine(), "setup": setup, **found})


def measured(given: argparse.Namespace, place: str, draft: bool) -> dict[str, list[float]]:
    """Images a second of each contestant, one after the other and again."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(given.repeats):
        await_quiet(given.patience)
        for name, each in rates.items():
            arguments = ["--contestant", name, "--folder", place]
            arguments += ["--processes", str(given.processes), *(["--draft"] if draft else [])]
            result = run_contestant(Process(OURS, Path(__file__), arguments), timeout=3600)
            each.append(result["images_per_second"])
    return rates


if __name__ == "__main__":
    main()
