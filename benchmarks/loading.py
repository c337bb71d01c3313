"""Loading large JPEG photos: images a second, cores in use, and how soon progress is shown."""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    OURS,
    RESULTS,
    Process,
    await_quiet,
    machine,
    print_table,
    run_contestant,
    write_json,
)

WIDTH, HEIGHT = 4000, 3000  # 12 megapixels
CLASSES = 4
SIZE = 224  # pixels a side of the network's input


def photos(folder: Path, count: int, distinct: int) -> int:
    """`count` JPEGs in folders of classes, of which `distinct` are different files; their bytes.

    The others are links: decoding them is the same work, and the disk need not hold them all.
    """
    import numpy as np
    from PIL import Image

    made: list[Path] = []
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class-{number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= distinct:
            os.link(made[number % distinct], path)
            continue
        # Smooth shapes, with the grain of a sensor, which decides how long decoding takes.
        coarse = rng.integers(0, 256, (HEIGHT // 100, WIDTH // 100, 3)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
        made.append(path)
    return sum(path.stat().st_size for path in made) // len(made)


def measure(folder: Path, cores: int) -> dict[str, Any]:
    """Open the photos on the first `cores` cores, as `fedsight run` does."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from fedsight.core.progress import listening
    from fedsight.data.base import sources
    from fedsight.runs.phases import Phases

    heard: list[float] = []
    shown: list[float] = []
    phases = Phases(lambda text: shown.append(time.monotonic()))

    def listen(phase: str, done: int, total: int) -> None:
        heard.append(time.monotonic())
        phases(phase, done, total)

    # The links are equal images, which are not the subject here.
    settings: dict[str, Any] = {"path": folder, "size": SIZE, "near_duplicates": "keep"}
    settings["duplicates"] = "keep"
    source = sources.get("folder")(**settings)
    start, used = time.monotonic(), time.process_time()
    with listening(listen):
        opened = source.open()
    seconds, busy = time.monotonic() - start, time.process_time() - used
    pauses = [b - a for a, b in zip([start, *heard], heard, strict=False)]
    return {
        "images": len(opened.train) + len(opened.test),
        "seconds": round(seconds, 2),
        "images_per_second": round((len(opened.train) + len(opened.test)) / seconds, 2),
        "cores_busy": round(busy / seconds, 2),
        "first_line_after_seconds": round(shown[0] - start, 2) if shown else None,
        "longest_pause_seconds": round(max(pauses), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def reduced(folder: Path) -> dict[str, Any]:
    """What JPEG's reduced decoding, which FedSight does not use, would change: time and pixels."""
    import numpy as np
    from PIL import Image

    from fedsight.data.base import Preprocess
    from fedsight.data.images.decode import raster

    goal = Preprocess(3, SIZE, SIZE)
    path = sorted(folder.rglob("*.jpg"))[0]
    start = time.monotonic()
    ours = raster(path, goal).astype(int)
    whole = time.monotonic() - start
    start = time.monotonic()
    with Image.open(path) as image:
        image.draft("RGB", (2 * SIZE, 2 * SIZE))
        small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    part = time.monotonic() - start
    apart = np.abs(ours - small)
    return {
        "seconds_whole": round(whole, 3),
        "seconds_reduced": round(part, 3),
        "largest_difference_of_255": int(apart.max()),
        "mean_difference_of_255": round(float(apart.mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--distinct", type=int, default=40, help="files that are not links")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for quiet")
    parser.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.cores)))
        return
    every = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        size = photos(Path(place), given.images, min(given.distinct, given.images))
        found = {}
        for cores in sorted({1, every}):
            load = await_quiet(given.patience)
            arguments = ["--measure", place, "--cores", str(cores)]
            result = run_contestant(Process(OURS, Path(__file__), arguments), timeout=7200)
            found[f"{cores} core{'s' if cores > 1 else ''}"] = {**result, "others": load}
        draft = reduced(Path(place))
    keys = ["seconds", "images_per_second", "cores_busy", "first_line_after_seconds"]
    keys += ["longest_pause_seconds", "peak_mib"]
    rows = [[how, *(str(each[key]) for key in keys)] for how, each in found.items()]
    title = f"{given.images:,} JPEGs of {WIDTH} x {HEIGHT} ({size / 1e6:.1f} MB each) to {SIZE}"
    print_table(title, ["", *(key.replace("_", " ") for key in keys)], rows)
    print("reduced decoding (not used): " + ", ".join(f"{k} {v}" for k, v in draft.items()))
    setup = {"images": given.images, "distinct": given.distinct, "bytes": size, "size": SIZE}
    write_json(given.out, {"machine": machine(), "setup": setup, **found, "reduced": draft})


if __name__ == "__main__":
    main()
