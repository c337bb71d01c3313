"""The data source interface: images behind one interface, a vocabulary, and site ids."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import DataError, Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.shared_memory import Shared
from fedsight.data.by_site import Classes, Numbers
from fedsight.data.class_names import Similar
from fedsight.data.duplicates.counts import Duplicates, Handling
from fedsight.data.groups import Overlap
from fedsight.data.images.windowing import Reading
from fedsight.data.look import Distribution, Harmonise, Look, quantiles_of
from fedsight.data.look import problems as look_problems

Indices = npt.NDArray[np.int64]
Fit = Literal["stretch", "crop", "pad"]
Modality = Literal["image", "text"]  # what a network reads
MAX_CHANNELS = 64
MAX_SIDE = 8192  # pixels of an image's height or width
MAX_IMAGE_VALUES = 1 << 26  # one empty image passes through the network before any other
Floats = Annotated[tuple[float, ...], Field(strict=False)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Location = Annotated[Path, Field(strict=False)]  # a file or folder; TOML gives it as a string
Side = Annotated[int, Field(ge=1, le=8192)]  # pixels


class Images(Protocol):
    """Images of one size behind indices; in memory, or decoded from disk when asked for."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` [b]: float32 [b, c, h, w], values 0 to 1."""
        ...

    def name(self, index: int) -> str:
        """Where an image came from (a path, or source and number), for messages and reports."""
        ...


@runtime_checkable
class Readable(Protocol):
    """`Images` made of texts that can also show their words, for the report."""

    def excerpt(self, index: int) -> str:
        """The beginning of text number `index`."""
        ...


def scaled(pixels: Tensor) -> Tensor:
    """Pixels of any shape as new float32: uint8 and uint16 from 0 to 1, others as they are.

    A value of 16 bits that stands for one of 8 (times 257) becomes the same number as that one, to
    the last digit. Images of 8 bits are kept in 16 where another image has 16, and no image may
    change the digits of others where noise is to hide it.
    """
    values = pixels.to(torch.float32)
    if pixels.dtype == torch.uint8:
        return values.mul_(1.0 / 255.0)
    if pixels.dtype != torch.uint16:
        return values if values is not pixels else values.clone()
    low = (values / 257.0).round_()
    return torch.where(low * 257.0 == values, low.mul(1.0 / 255.0), values.mul(1.0 / 65535.0))


class ArrayImages:
    """Images held in memory: uint8, uint16 or float32 in [0, 1], [n, c, h, w]."""

    def __init__(self, pixels: Tensor, origin: str) -> None:
        self.pixels = pixels
        self.origin = origin
        self._shared: Shared | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` [b]: float32 [b, c, h, w], values 0 to 1."""
        return scaled(self.pixels[indices])

    def name(self, index: int) -> str:
        """Source and number."""
        return f"{self.origin}[{index}]"

    def __getstate__(self) -> dict[str, Any]:
        """Move the pixels to shared memory, so that other processes get no copy."""
        if self._shared is None:
            self._shared = Shared.of(self.pixels)
            self.pixels = self._shared.tensor
        return {**self.__dict__, "pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = state["_shared"].tensor


@dataclass(frozen=True)
class Part:
    """The training or the test part: images, class numbers [n] int64, and natural site ids.

    Splits and counts use `labels`. A task whose truth is more than one class per image finds it in
    `targets`, one tensor for all images: boxes, masks or several labels.
    """

    images: Images
    labels: Indices
    sites: Sequence[str] | None = None  # one id per image, when the source knows them
    targets: Tensor | None = None  # [n, ...] what the task learns from; None: the labels
    groups: Sequence[str | None] | None = None  # what belongs together, such as a patient's images

    def __len__(self) -> int:
        return len(self.labels)

    def unit(self, place: int) -> object:
        """What the image at `place` belongs to: its group, or itself."""
        name = None if self.groups is None else self.groups[place]
        return place if name is None else name

    def counts(self, classes: int, indices: Indices | None = None) -> Indices:
        """How many images (of those at `indices`) show each class [classes].

        An image with several classes counts for each, an image with none for none.
        """
        chosen = slice(None) if indices is None else indices
        if self.targets is None or self.targets.dim() == 1:
            return np.bincount(self.labels[chosen], minlength=classes)
        targets = self.targets[chosen if indices is None else torch.from_numpy(indices)]
        if targets.dim() == 2:  # labels, each there or not
            shown = targets > 0
        else:  # boxes by their class, or pixels by theirs
            found = targets[:, :, 0] if targets.is_floating_point() else targets.flatten(1)
            shown = torch.stack([(found == label).any(1) for label in range(classes)], 1)
        counts: Indices = shown.sum(0).numpy()
        return counts


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input; stored with the model, so that prediction agrees.

    An image is turned upright (EXIF), converted to `channels` (1 grey or 3 colour; transparency
    onto black), resized to (height, width) by the `fit` rule, scaled to [0, 1], and normalised
    with `mean` and `std` per channel. Fit: `stretch` ignores the aspect ratio, `crop` scales the
    shorter side and cuts the middle out, `pad` scales the longer side and adds black borders.

    A text becomes one row with the numbers of its first `width` words.
    """

    channels: int
    height: int
    width: int
    fit: Fit = "stretch"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dicom: Reading | None = None  # how DICOM files become grey, if the images are DICOM
    look: Look | None = None  # what each image is made to look like before it is normalised
    # not in the repr, which identifies galleries of faces
    modality: Modality = field(default="image", repr=False)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Preprocess:
        """From plain values, as `asdict` and JSON have them.

        Raises TypeError or ValueError for values that no image has, or that would take too much
        memory.
        """
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        if fields.get("dicom") is not None:
            fields["dicom"] = Reading.of(fields["dicom"])
        if fields.get("look") is not None:
            fields["look"] = Look.of(fields["look"])
        modality = fields.get("modality", "image")
        if modality not in get_args(Modality):
            raise ValueError(f"'{modality}' is not one of {', '.join(get_args(Modality))}")
        found = cls(**fields)
        found._check_plausible()
        return found

    def _check_plausible(self) -> None:
        sides, floats = (self.channels, self.height, self.width), (*self.mean, *self.std)
        if any(type(number) is not int for number in sides):
            raise ValueError("expected an image's size as whole numbers")
        fits = all(1 <= side <= MAX_SIDE for side in sides)
        fits = fits and self.channels <= MAX_CHANNELS and math.prod(sides) <= MAX_IMAGE_VALUES
        if not fits or self.fit not in get_args(Fit):
            raise ValueError("invalid image size or fit")
        finite = all(type(value) is float and math.isfinite(value) for value in floats)
        same = len(self.mean) == len(self.std) and len(self.std) in (0, self.channels)
        if not finite or not same or min(self.std, default=1.0) <= 0:
            raise ValueError("each channel needs a mean and a positive standard deviation")

    @property
    def modalities(self) -> str:
        """The plural, for messages: images or texts."""
        return f"{self.modality}s"

    def normalise(self, pixels: Tensor) -> Tensor:
        """[b, c, h, w] in [0, 1] -> with the look of the others, and normalised."""
        if self.look is not None:
            pixels = self.look.apply(pixels, self.mean, self.std)
        shape = (1, self.channels, 1, 1)
        mean, std = (torch.tensor(v, device=pixels.device) for v in (self.mean, self.std))
        return (pixels - mean.view(shape)).div_(std.view(shape))  # large: one new tensor, not two


@dataclass(frozen=True)
class Dataset:
    """An opened source."""

    train: Part
    test: Part
    classes: tuple[str, ...]
    preprocess: Preprocess
    # images left out because they are corrupt, and invalid annotations (the config allows it)
    skipped: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)  # title, licence, credit
    untold: tuple[str, ...] = ()  # remote sites that do not tell the classes of their images
    validation: Part | None = None  # set aside by the source: not trained on, not tested on
    passed_over: Mapping[str, int] = field(default_factory=dict)  # files not read, by reason
    notes: tuple[str, ...] = ()  # what to say about how the source was read
    ordered: bool = True  # the order of the classes was stated, or is that of numbers
    duplicates: Duplicates | None = None  # None: they were not looked for
    left_out: tuple[str, ...] = ()  # which of `skipped` are annotations
    labelled: Classes | None = None  # by site: the classes that were labelled; None: all
    # by site: what the owner states in place of the mean and deviation of the site's images
    site_mean: Numbers | None = None
    site_std: Numbers | None = None
    public: Part | None = None  # images that every site has, without their labels

    def read_from(self, files: Mapping[str, int], notes: Sequence[str] = ()) -> Dataset:
        """The data set with the files that its source passed over, and its notes before others."""
        passed_over = {
            **files,
            **self.passed_over,
        }  # files by what they are, images by why left out
        return replace(self, passed_over=passed_over, notes=(*notes, *self.notes))

    @property
    def corrupt(self) -> int:
        """How many images were left out because they cannot be read."""
        return len(self.skipped) - len(self.left_out)

    @property
    def said(self) -> tuple[str, ...]:
        """What to tell whoever opened the source: the files passed over, and the notes."""
        counts = listed_reasons(self.passed_over)
        return (f"files passed over: {counts}", *self.notes) if counts else self.notes


def counted_parts(opened: Dataset) -> str:
    """The sizes of the parts, in words: `80 training images and 20 test images`."""
    units = opened.preprocess.modalities
    said = [f"{len(opened.train):,} training {units}"]
    if opened.validation is not None:
        said.append(f"{len(opened.validation):,} validation {units}")
    return f"{', '.join(said)} and {len(opened.test):,} test {units}"


def listed_reasons(passed_over: Mapping[str, int]) -> str:
    """What was passed over, in one line: `.heic 30, dead links 30, hidden 4`."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(passed_over.items()))


class Source(Settings, ABC):
    """Where images come from: `[data]` in the config. A new source takes one file in `sources/`."""

    # Whether this is a sample that every machine has. A site with such a source has no images of
    # its own: it takes the share of the sample that the program's split gives it.
    sample: ClassVar[bool] = False

    # per channel, of pixels in [0, 1] (three numbers for grey images count as their mean); None:
    # what published weights expect (model.weights), else 0.5 each
    mean: Floats | None = None
    std: Floats | None = None  # None: likewise, else 0.25 each
    # which classes were labelled: a list, or lists by site; None: all classes at all sites. The
    # others are left out of the loss and of the figures there: an image without one may show it
    labelled: Classes | None = None
    # how images of different devices are made to look alike. image: each has the same mean and
    # deviation; histogram: each has the template's distribution of values; site: the images of a
    # site together have the same mean and deviation, from statistics that stay there
    harmonise: Harmonise = "none"
    # of a histogram: a distribution, or the quantiles of public pixels at equal steps, from 0 to 1
    template: Distribution | Floats = "uniform"
    # with harmonise = "site": public numbers in place of those of a site's training images, for
    # each channel, once for all sites or by site; None: they are computed there
    site_mean: Numbers | None = None
    site_std: Numbers | None = None

    @abstractmethod
    def open(self) -> Dataset:
        """Read what is needed to train; DataError names the file and the cure."""

    def check(self) -> list[Problem]:
        """Problems that can be found without reading images, such as a missing folder."""
        stated = (self.site_mean is not None, self.site_std is not None)
        problems = look_problems(self.harmonise, self.template, stated)
        if any(value <= 0 for value in self.std or ()):
            cause = f"std {self.std} has a value that is not positive"
            problems.append(Problem("data.std", cause, "give each channel's standard deviation"))
        for key, path in self.locations().items():
            if not path.exists():
                cause = f"'{path}' does not exist"
                problems.append(Problem(f"data.{key}", cause, "correct the path or create it"))
        return problems

    def locations(self) -> dict[str, Path]:
        """The files and folders that must exist, by setting."""
        return {}

    @property
    def vocabulary(self) -> str:
        """The setting without which a site's own files may decide which classes there are: their
        labels, or a list of names beside them, which nobody else has stated. Empty if they never
        do. A source without a field `classes` that reads labels names its own setting here, as
        those of people do: which classes there are is otherwise told by the labels, unasked."""
        return "classes" if "classes" in type(self).model_fields else ""

    def preprocess(
        self,
        channels: int,
        height: int,
        width: int,
        fit: Fit = "stretch",
        usual: tuple[float, float] = (0.5, 0.25),
    ) -> Preprocess:
        """The preprocessing under these settings; `usual` are the source's own mean and std.

        Raises DataError when the settings do not have one positive number per channel.
        """
        means = _grey(self.mean, channels) if self.mean is not None else usual[:1] * channels
        stds = _grey(self.std, channels) if self.std is not None else usual[1:] * channels
        for key, values in (("mean", means), ("std", stds)):
            if len(values) != channels or (key == "std" and min(values) <= 0):
                raise DataError(
                    f"data.{key} is {list(values)}, but the images have {channels} channel(s)",
                    f"give {channels} number(s), for std above 0, or leave data.{key} out",
                )
        return Preprocess(
            channels, height, width, fit, tuple(means), tuple(stds), look=self._look()
        )

    def _look(self) -> Look | None:
        """What each image is made to look like by itself."""
        if self.harmonise in ("none", "site"):
            return None
        if self.harmonise == "image":
            return Look("image")
        return Look("histogram", quantiles_of(self.template))


def _grey(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (sum(values) / 3,) if channels == 1 and len(values) == 3 else values


class SizedSource(Source):
    """A source whose images must be brought to one size."""

    size: Side | Annotated[tuple[Side, Side], Field(strict=False)] = 32  # square or [height, width]
    channels: Literal[1, 3] = 3
    fit: Fit = "stretch"
    corrupt: Literal["error", "skip"] = "error"  # what to do with images that cannot be read
    missing: Literal["error", "allow"] = "error"  # a class of data.classes without training images
    # what to do with class names that differ only in case, blanks, Unicode form or the like
    similar_names: Similar = "error"
    similar_sites: Similar = "error"  # the same for names of sites
    duplicates: Handling = "error"  # equal images in two parts or with two labels
    near_duplicates: Handling = "report"  # images in two parts that look alike
    # what is held out whole, such as a patient: a column, a key, or a pattern over paths
    group: str | None = Field(None, min_length=1)
    group_overlap: Overlap = "error"  # groups that the files put into two parts
    in_memory: bool | None = None  # decode once; None: when the pixels fit into 1 GiB
    verify: bool = True  # when streaming: decode every image once on opening, to find corrupt ones
    test_fraction: float = Field(0.2, gt=0, lt=1)  # held out where the source has no test part
    test_seed: int = 0  # which images are held out

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


# Settings of sources that a federation's program decides: how an image or a text becomes the
# network's input, and what the classes are. All others are the owner's, those of sources from
# plug-ins too: which images there are, which of them are tested on, and how labels are read. Two
# programs that differ in one of these would tell the figures of single images by subtraction.
PROGRAM_KEYS = frozenset(
    {
        *("classes", "room"),
        *("size", "channels", "fit", "mean", "std", "length", "harmonise", "template"),
        *("window", "view", "function", "orientation"),  # of DICOM files
    }
)

sources: Registry[Source] = Registry("data source", "fedsight.data.sources")
