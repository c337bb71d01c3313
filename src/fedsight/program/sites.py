"""A user's own torch data sets, one for each site, as a program's data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsight.core.errors import ConfigError, DataError, Problem
from fedsight.data.assembly import held_out
from fedsight.data.base import ArrayImages, Dataset, Part, Preprocess, Source
from fedsight.data.duplicates.found import copied
from fedsight.data.images.pixels import MAX_PIXELS, read_pixels
from fedsight.program.objects import OWN, Own

LONGEST_NAME = 80  # bytes of a site's name
_WHOLE = {torch.uint8, torch.uint16}  # pixels that are counts; the rest are 0 to 1
_ITEM = "each item must be (image, label): a tensor [c, h, w] or PIL image, and a whole number"


class OwnData(Source):
    """Images that were given from Python, by site; they are kept in memory."""

    registered: ClassVar[str | None] = OWN
    object: Own

    def open(self) -> Dataset:
        """The images as they were read when they were given."""
        if self.object.missing:
            found = self.object.problem("data")
            raise DataError(found.cause, found.cure)
        value: Dataset = self.object.value
        seen = value.preprocess
        prepared = self.preprocess(seen.channels, seen.height, seen.width, usual=(0.0, 1.0))
        return replace(value, preprocess=prepared)

    def check(self) -> list[Problem]:
        """Whether the images are available."""
        return [self.object.problem("data")] if self.object.missing else super().check()


@dataclass(frozen=True)
class _Read:
    """The items of one data set: pixels [n, c, h, w] and labels [n]."""

    site: str
    pixels: Tensor
    labels: np.ndarray[Any, np.dtype[np.int64]]


def sites(
    datasets: Mapping[str, Any],
    *,
    test: Any = None,
    classes: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    test_seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> OwnData:
    """Your own torch data sets as a program's data: `sites({"lyon": one, "oslo": other})`.

    An item is `(image, label)`: a tensor [c, h, w] or [h, w], uint8 or from 0 to 1, or a PIL image;
    and a whole number from 0. All images have one shape. Each item is read once, now, and kept in
    memory; random augmentation belongs in `train.augment`. `test` is one data set for all sites or
    one for each; without it a share `test_fraction` of each class is held out, drawn by
    `test_seed`. `classes` names the labels (default: their numbers). The network sees pixels from 0
    to 1, normalised by `mean` and `std` per channel if these are given; prediction does the same.

    Raises ConfigError for a wrong argument, and DataError for an item that is not as above.
    """
    _check_names(datasets)
    _check_arguments(classes, test_fraction, test_seed, test)
    channels: dict[str, Any] = {"mean": _numbers("mean", mean), "std": _numbers("std", std)}
    train = [_read(name, dataset, f"site '{name}'") for name, dataset in datasets.items()]
    tested = _tests(test, list(datasets)) if test is not None else []
    _check_shapes([*train, *tested])
    names = _classes(train, tested, classes)
    opened = _assembled(train, tested, names, test_fraction, test_seed)
    own = Own("data sets: " + ", ".join(datasets), _hash(opened), opened, sent=False).remember()
    return OwnData(object=own, **channels)


def _check_names(datasets: Any) -> None:
    """Names become those of files, at most three bytes for each of the name's."""
    if not isinstance(datasets, Mapping) or not datasets:
        cause = f"expected a dict of data sets by the site's name, got {datasets!r:.80}"
        raise ConfigError([Problem("data", cause, 'write fedsight.sites({"lyon": dataset})')])
    for name in datasets:
        cause = f"{name!r:.80} is not a site's name"
        cure = f"name each site by a string of at most {LONGEST_NAME} bytes, without line breaks"
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise ConfigError([Problem("data", cause, f"{cure} or spaces around it")])
        if not name.isprintable() or len(name.encode(errors="replace")) > LONGEST_NAME:
            raise ConfigError([Problem("data", cause, cure)])


def _check_arguments(classes: Any, test_fraction: Any, test_seed: Any, test: Any) -> None:
    """What `sites` cannot use; ConfigError names the argument."""
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Sequence)):
        cause = f"classes is {classes!r:.80}, not a list of names"
        raise ConfigError([Problem("data", cause, 'write for example classes=["cat", "dog"]')])
    if type(test_fraction) is not float or not 0 < test_fraction < 1:
        cause = f"test_fraction is {test_fraction!r}, but must be between 0 and 1"
        raise ConfigError([Problem("data", cause, "write for example test_fraction=0.2")])
    if type(test_seed) is not int:
        cause = f"test_seed is {test_seed!r}, not a whole number"
        raise ConfigError([Problem("data", cause, "write for example test_seed=1")])
    if isinstance(test, Mapping) and not test:
        cause = "test has no data sets"
        cure = "leave it out to hold out a share of the images, or give test data"
        raise ConfigError([Problem("data", cause, cure)])


def _numbers(name: str, given: Any) -> tuple[float, ...] | None:
    """`mean` or `std`: one number for each channel."""
    if given is None:
        return None
    try:
        found = tuple(map(float, given))
    except (TypeError, ValueError):
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        cause = f"{name} is {given!r:.80}, not a list of finite numbers"
        cure = f"give one number for each channel: {name}=[0.5, 0.5, 0.5]"
        raise ConfigError([Problem(f"data.{name}", cause, cure)])
    return found


def _tests(test: Any, names: list[str]) -> list[_Read]:
    if not isinstance(test, Mapping):
        return [_read("", test, "the test data")]
    for name in test:
        if name not in names:
            cause = f"there are test data for '{name}', which is not a site"
            raise ConfigError([Problem("data", cause, f"the sites are: {', '.join(names)}")])
    return [_read(name, one, f"the test data of site '{name}'") for name, one in test.items()]


def _read(site: str, dataset: Any, where: str) -> _Read:
    images: list[Tensor] = []
    labels: list[int] = []
    for number, item in enumerate(_items(dataset, where)):
        place = f"{where}, item {number}"
        if not isinstance(item, tuple | list) or len(item) != 2:
            shown = f"{len(item)} values" if isinstance(item, tuple | list) else _type(item)
            raise DataError(f"{place}: expected (image, label), got {shown}", _ITEM)
        image, label = _image(item[0], place), _label(item[1], place)
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise DataError(
                f"{place}: the image is {_shape(image)}, but item 0 is {_shape(images[0])}",
                "bring all images to one size and type, for example by "
                "torchvision.transforms.Resize((64, 64)) in the data set",
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"{where} has no items", f"leave {'this site' if site else 'test'} out")
    return _Read(site, torch.stack(images), np.array(labels, dtype=np.int64))


def _items(dataset: Any, where: str) -> Iterator[Any]:
    """All items in order; a data set without a length is read to its end."""
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not indexed and not isinstance(dataset, torch.utils.data.IterableDataset):
        raise DataError(
            f"{where}: expected a torch.utils.data.Dataset, got {_type(dataset)}",
            "give the data set itself, not a loader of it",
        )
    count = 0
    try:
        source: Iterable[Any] = (
            (dataset[number] for number in range(len(dataset))) if indexed else iter(dataset)
        )
        for item in source:
            yield item
            count += 1
    except Exception as error:  # the user's code
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where}, item {count}: reading it fails: {type(error).__name__}: {error}",
            "correct the data set",
        ) from error


def _image(value: Any, place: str) -> Tensor:
    """Pixels [c, h, w]: uint8, uint16, or float32 from 0 to 1. Pillow's images become upright and
    stand on black, as those in files do."""
    if isinstance(value, Image.Image):
        array = read_pixels(value, place)  # as predictions read it
        value = torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))
    if not isinstance(value, Tensor):
        raise DataError(f"{place}: the image is a {_type(value)}", _ITEM)
    if value.is_meta or value.layout != torch.strided:
        raise DataError(f"{place}: the image is a tensor that does not hold its pixels", _ITEM)
    image = value[None] if value.dim() == 2 else value
    if image.dim() != 3 or not image.numel():
        raise DataError(f"{place}: the image has shape {tuple(value.shape)}", _ITEM)
    first, rows, last = image.shape
    if last in (1, 3, 4) and first > 4 < rows:
        raise DataError(
            f"{place}: the image has shape {tuple(value.shape)}, with its channels last",
            "put the channels first: image.permute(2, 0, 1)",
        )
    if rows * last > MAX_PIXELS:  # as of files, before any of it is copied
        raise DataError(
            f"{place}: the image has {rows:,} x {last:,} pixels, too many to be kept in memory",
            f"cut or shrink it to at most {MAX_PIXELS:,} pixels",
        )
    image = image.detach().cpu()
    if image.dtype in _WHOLE:
        return image.contiguous()
    if not image.is_floating_point():
        cure = "give uint8 from 0 to 255, or floating point from 0 to 1"
        raise DataError(f"{place}: the image is {image.dtype}", cure)
    image = image.to(torch.float32).contiguous()
    low, high = image.aminmax()
    if not (bool(low >= 0) and bool(high <= 1)):  # NaN is refused too
        raise DataError(
            f"{place}: pixels are between {float(low):.3g} and {float(high):.3g}, not 0 and 1",
            "leave Normalize out of the data set and give fedsight.sites(..., mean=[...], "
            "std=[...]) instead: then prediction does the same",
        )
    return image


def _label(value: Any, place: str) -> int:
    if isinstance(value, Tensor | np.generic | np.ndarray) and np.prod(value.shape) == 1:
        value = value.item()
    if type(value) is not int or not 0 <= value < 2**31:
        raise DataError(
            f"{place}: the label is {value!r}, not a whole number from 0",
            "number the classes 0, 1, 2 and so on",
        )
    return value


def _check_shapes(parts: list[_Read]) -> None:
    first = parts[0]
    for part in parts[1:]:
        one, other = first.pixels[0], part.pixels[0]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            whose = f"site '{part.site}'" if part.site else "the test data"
            raise DataError(
                f"{whose} has images that are {_shape(other)}, and site '{first.site}' has images "
                f"that are {_shape(one)}",
                "bring the images of all sites to one size and type",
            )


def _classes(
    train: list[_Read], tested: list[_Read], names: Sequence[str] | None
) -> tuple[str, ...]:
    """The class names; DataError for a label without a name or without training images."""
    highest = max(int(part.labels.max()) for part in (*train, *tested))
    if names is not None:
        found = tuple(map(str, names))
        if len(set(found)) < len(found):
            raise DataError("classes names a class twice", "name each class once")
        if highest >= len(found):
            raise DataError(
                f"there is a label {highest}, but classes names only {len(found)}",
                "name every class, in the order of the labels",
            )
        return found
    seen = set(np.concatenate([part.labels for part in train]).tolist())
    # Not a list of all that could be missing: the highest may be an identifier of many digits.
    missing = next((label for label in range(highest + 1) if label not in seen), None)
    if missing is not None:
        raise DataError(
            f"no training image has the label {missing}, but labels go up to {highest}",
            "number the classes without gaps, or name them all with classes=[...]",
        )
    return tuple(map(str, range(highest + 1)))


def _assembled(
    train: list[_Read], tested: list[_Read], names: tuple[str, ...], fraction: float, seed: int
) -> Dataset:
    pixels = torch.cat([part.pixels for part in train])
    labels = np.concatenate([part.labels for part in train])
    owners = np.repeat([part.site for part in train], [len(part.labels) for part in train])
    if tested:
        learned = _part(pixels, labels, owners, "train")
        whose = np.repeat([part.site for part in tested], [len(part.labels) for part in tested])
        others = np.concatenate([part.labels for part in tested])
        one = _part(torch.cat([part.pixels for part in tested]), others, whose, "test")
        test = one if tested[0].site else replace(one, sites=None)
    else:
        mask = held_out(labels, owners, fraction, seed)
        if not mask.any():
            raise DataError(
                "there are too few images to hold any out for testing",
                "give test data with test=..., or at least two images of each class",
            )
        kept, held = torch.from_numpy(~mask), torch.from_numpy(mask)
        learned = _part(pixels[kept], labels[~mask], owners[~mask], "train")
        test = _part(pixels[held], labels[mask], owners[mask], "test")
    channels, height, width = pixels.shape[1:]
    size = Preprocess(channels, height, width)
    places = ", ".join(part.site for part in train)
    made = Dataset(learned, test, names, size, facts={"title": f"Data sets of {places}"})
    if (found := copied(made)) is None:
        return made
    copies = found.duplicates  # they are counted and said, as those of files are
    return replace(made, duplicates=copies, notes=copies.sentences("images"))


def _part(pixels: Tensor, labels: Any, owners: Any, origin: str) -> Part:
    return Part(ArrayImages(pixels, origin), labels, owners.tolist())


def _hash(opened: Dataset) -> str:
    """SHA-256 over all items, their sites and the class names."""
    found = hashlib.sha256(repr(opened.classes).encode())
    for part in (opened.train, opened.test):
        pixels = part.images.pixels  # type: ignore[attr-defined]  # they are ArrayImages
        found.update(f"{pixels.dtype} {tuple(pixels.shape)} {part.sites}".encode())
        found.update(pixels.reshape(-1).view(torch.uint8).numpy().tobytes())
        found.update(part.labels.tobytes())
    return found.hexdigest()


def _shape(image: Tensor) -> str:
    return f"{' x '.join(map(str, image.shape))} {str(image.dtype).removeprefix('torch.')}"


def _type(value: Any) -> str:
    return type(value).__name__
