"""Assembles a data set with boxes, at the network's input size, from images with objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fedsight.core.errors import DataError
from fedsight.data.assembly import Collection, Labels, opened_whole
from fedsight.data.base import Dataset, SizedSource
from fedsight.data.class_map import MappedClasses, Name
from fedsight.data.class_names import settled_names, used
from fedsight.data.detection.boxes import Row, majority, pack
from fedsight.data.detection.objects import Annotated as Shown
from fedsight.data.detection.objects import Judge, Policy, placed
from fedsight.data.images.decode import upright
from fedsight.data.images.disk import DiskImages, named, settle
from fedsight.data.labelled import check_labelled, unlabelled
from fedsight.data.repeats import listed_once
from fedsight.data.site_names import settled_sites, site_names


class BoxSource(MappedClasses, SizedSource):
    """A source whose images have boxes, with settings for invalid annotations."""

    outside: Literal["error", "skip", "clip"] = "error"  # for boxes that reach outside their image
    no_area: Literal["error", "skip"] = "error"  # for boxes without area
    unknown: Literal["error", "skip"] = "error"  # for objects of a class outside the vocabulary

    @property
    def policy(self) -> Policy:
        """How invalid annotations are handled."""
        return Policy(self.outside, self.no_area, self.unknown)


def dataset(
    images: Sequence[Shown], source: BoxSource, origin: str, classes: Sequence[str]
) -> Dataset:
    """The data set of `images` with the vocabulary `classes`.

    Raises DataError for no images, a bad annotation (unless the source's policy skips it), a class
    without training boxes, a site without training images, and what is wrong with the images.
    """
    if not images:
        raise DataError(f"'{origin}' has no images", "check the path and the file formats")
    images, classes, notes = _named(images, classes, source)
    images, said = settled_sites(images, source.similar_sites)
    images, repeated = _once(images)
    _check_names(source, classes, {image.site for image in images if image.site})
    preprocess = source.preprocess(source.channels, *source.shape, fit=source.fit)
    judge = Judge(tuple(classes), source.policy)
    whole: list[list[Row]] = []  # of each image, in its own pixels
    rows: list[list[Row]] = []  # in those of the network's input
    missing: list[list[int]] = []
    sized, unreadable = _sized(images, source)
    images = [image for image, _ in sized]
    if not images:
        raise DataError(f"'{origin}': no image can be read", "restore the images")
    for image, size in sized:
        _check_stated(image, size)
        whole.append(judge.rows(image.objects, size))
        found = [placed(row, size, preprocess) for row in whole[-1]]
        rows.append([row for row in found if row is not None])
        missing.append(unlabelled(source.labelled, image.site, classes))
    targets = pack(rows, missing)
    # A program chooses the frame. With the classes of what it shows, counts would tell where in an
    # image its objects are.
    labels = Labels(tuple(classes), majority(pack(whole, missing)).numpy(), targets)
    sites = site_names([image.site for image in images], origin)
    notes = (*notes, *said, *repeated, *_uncounted(images))
    files = DiskImages([image.path for image in images], preprocess)
    collection = Collection(
        origin,
        labels,
        sites,
        None,
        lambda chosen: settle(files.only(chosen), source),
        notes,
    )
    opened = opened_whole(collection, images, preprocess, source, unreadable)
    left_out = tuple(judge.skipped)
    opened = replace(opened, skipped=(*opened.skipped, *left_out), left_out=left_out)
    collection.check(opened, source.missing, "boxes")
    return opened


def _uncounted(images: Sequence[Shown]) -> tuple[str, ...]:
    """What to say about outlines, crowds and difficult objects."""
    objects = [one for image in images for one in image.objects]
    crowds = sum(one.crowd for one in objects)
    hard = sum(one.difficult and not one.crowd for one in objects)
    drawn = sum(one.outline for one in objects)
    notes = []
    if drawn:
        notes.append(f"{drawn} outlines count as the boxes around them")
    if crowds:
        notes.append(f"{crowds} boxes are crowds: what is found in them counts neither way")
    if hard:
        notes.append(f"{hard} objects are difficult: trained on, and not counted in the evaluation")
    return tuple(notes)


def _named(
    images: Sequence[Shown], classes: Sequence[str], source: BoxSource
) -> tuple[list[Shown], list[str], tuple[str, ...]]:
    """Images and vocabulary with one spelling for each class, and what to say about it."""
    objects = [(image, one) for image in images for one in image.objects]
    names = [Name(one.label, image.site, one.where) for image, one in objects]
    given = getattr(source, "classes", None)
    sites = (image.site for image in images)
    stated = classes if given else source.mapped(classes, sites) or ()
    labels, said = source.naming.read(names, stated, source.similar_names, "objects")
    left = iter(labels)
    images = [
        replace(image, objects=tuple(replace(one, label=next(left)) for one in image.objects))
        for image in images
    ]
    uses = used((one.label, one.where) for image in images for one in image.objects)
    read, notes = settled_names(uses, stated, source.similar_names, "objects")
    if any(name != label for label, name in read.items()):
        images = [
            replace(image, objects=tuple(replace(o, label=read[o.label]) for o in image.objects))
            for image in images
        ]
    return list(images), [name for name in stated if read[name] == name], (*said, *notes)


def _once(images: Sequence[Shown]) -> tuple[list[Shown], tuple[str, ...]]:
    """The images without entries that repeat one, and what to say about it.

    Raises DataError as `listed_once` does.
    """

    def alike(one: int, other: int) -> bool:
        pair = (images[one].objects, images[other].objects)
        return len({tuple(replace(o, where="") for o in objects) for objects in pair}) == 1

    kept = listed_once(images, alike)
    count = len(images) - len(kept)
    notes = (f"{count} entries list an image again; each image counts once",) if count else ()
    return [images[index] for index in kept], notes


def _sized(
    images: Sequence[Shown], source: BoxSource
) -> tuple[list[tuple[Shown, tuple[int, int]]], list[str]]:
    """The images with (width, height) when upright, and the names of skipped corrupt ones."""
    sized, unreadable = [], []
    for index, image in enumerate(images):
        try:
            sized.append((image, upright(image.path)))
        except DataError:
            if source.corrupt == "error":
                raise
            unreadable.append(named(image.path, index))
    return sized, unreadable


def _check_stated(image: Shown, size: tuple[int, int]) -> None:
    """DataError if the annotations give another size than the image has."""
    if image.stated not in (None, size):
        stated = " x ".join(map(str, image.stated or ()))
        raise DataError(
            f"{image.where}: '{image.path}' has {size[0]} x {size[1]} pixels, not {stated} as in "
            "the annotations",
            "annotate the upright image, turned as its EXIF orientation says",
        )


def _check_names(source: BoxSource, classes: Sequence[str], sites: set[str]) -> None:
    if not classes or len(set(classes)) < len(classes):
        raise DataError("data.classes is empty or names a class twice", "name each class once")
    check_labelled(source.labelled, sites, classes)
