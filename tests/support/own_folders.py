"""Folders as people have them, with small real image files: classes, sites, parts, masks, boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def picture(path: Path, kind: int, side: int = 16, seed: int = 0, grey: bool = False) -> None:
    """Noise in which one channel (or the upper or lower half) is brighter, by kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([kind, seed])
    pixels = rng.integers(0, 120, (side, side, 3)).astype(np.uint8)
    pixels[..., kind % 3] += 100
    if grey:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
        pixels[(side // 2) * (kind % 2) :] //= 2
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)


def class_folders(
    root: Path, above: Sequence[str] = ("",), count: int = 6, side: int = 16, suffix: str = "png"
) -> Path:
    """`root/ABOVE/class/number.png`."""
    for place, folder in enumerate(above):
        for kind, name in enumerate(CLASSES):
            for number in range(count):
                seed = place * 100 + number
                picture(root / folder / name / f"{seed}.{suffix}", kind, side, seed)
    return root


def masks(root: Path, values: Sequence[int] = (0, 255), mode: str = "L", count: int = 12) -> Path:
    """`root/images/n.png` and `root/masks/n.png`, with a square of each value."""
    for number in range(count):
        picture(root / "images" / f"{number}.png", number, 24, number)
        mask = np.full((24, 24), values[0], np.uint8)
        for place, value in enumerate(values[1:]):
            mask[2 + number % 4 : 12, 8 * place + 1 : 8 * place + 7] = value
        image = Image.fromarray(mask)
        if mode == "P":
            image = image.convert("P")
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
            image.putdata(mask.ravel().tolist())
        if mode == "RGB":
            colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)
            image = Image.fromarray(colours[np.searchsorted(values, mask)])
        path = root / "masks" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return root


def yolo(root: Path, named: bool = True) -> Path:
    """`images/train` beside `labels/train`, and `val`; with `data.yaml` if `named`."""
    for number in range(16):
        part = "val" if number % 4 == 3 else "train"
        picture(root / "images" / part / f"{number}.jpg", number, 32, number)
        label = root / "labels" / part / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"{number % 2} 0.5 0.5 0.5 0.5\n")
    if named:
        text = "path: .\ntrain: images/train\nval: images/val\nnames: {0: cup, 1: pen}\n"
        (root / "data.yaml").write_text(text)
    return root


def coco(root: Path) -> Path:
    """A COCO JSON with boxes, beside its images."""
    entries: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for number in range(12):
        picture(root / f"{number}.jpg", number, 32, number)
        entries["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "width": 32, "height": 32}
        )
        box = {"id": number, "image_id": number, "category_id": 1 + number % 2}
        entries["annotations"].append({**box, "bbox": [4, 4, 20, 20]})
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "pen"}]
    (root / "annotations.json").write_text(json.dumps({**entries, "categories": categories}))
    return root


def people(root: Path, names: Sequence[str], count: int = 4) -> Path:
    """A folder per person."""
    for kind, name in enumerate(names):
        for number in range(count):
            picture(root / name / f"{number}.png", kind, 32, kind * 100 + number, grey=True)
    return root


def table(root: Path, labels: Sequence[str], columns: str = "path,label") -> Path:
    """A CSV of images, `labels` in turn, and its delimiter that of `columns`."""
    delimiter = ";" if ";" in columns else ","
    lines = [columns]
    for number in range(24):
        picture(root / "photos" / f"{number}.png", number % len(labels), 16, number)
        label = labels[number % len(labels)]
        label = f'"{label}"' if "," in label else label
        lines.append(f"photos/{number}.png{delimiter}{label}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
