"""Images with boxes: COCO JSON, Pascal VOC XML and YOLO text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Location, Words, sources
from fedsight.data.detection.assembly import BoxSource, dataset
from fedsight.data.detection.coco import CocoImage, read_coco
from fedsight.data.detection.coco_set import coco_files, image_file, image_folders, unread
from fedsight.data.detection.found import (
    WITHOUT,
    Found,
    format_of,
    joined,
    left_over,
    only_training,
    refuse_overlap,
    without_labels,
)
from fedsight.data.detection.objects import Annotated, Object
from fedsight.data.detection.voc import read_voc, refuse_zeros
from fedsight.data.detection.voc_sets import (
    ImageSets,
    bare,
    picture_of,
    refuse_unfound,
    sets_above,
    xml_files,
)
from fedsight.data.detection.yolo import labels_of, read_yolo
from fedsight.data.detection.yolo_set import YoloImage, yolo_set
from fedsight.data.groups import by_path, column, need_pattern
from fedsight.data.images.decode import upright
from fedsight.data.layouts import Place, arranged
from fedsight.data.parts import NAMES
from fedsight.data.passed_over import cures
from fedsight.data.single_draws import refuse_other_tests


@sources.add("boxes", reads="COCO JSON, Pascal VOC XML, YOLO text")
class Boxes(BoxSource):
    """Images with boxes around objects, for detection; the format is recognised from the files.

    `path` is a COCO JSON, a folder with some (one for each part), with Pascal VOC's XML files or
    with YOLO's text files, or YOLO's `data.yaml`. The parts are those of VOC's `ImageSets`, of
    `data.yaml`, and of folders and files called `train`, `val` or `test`, in any case and at any
    depth; without them `test_fraction` is held out.
    """

    path: Location  # the JSON, or the folder
    test_path: Location | None = None  # a second JSON or folder with the test part
    images: Location | None = None  # the folder of the images; None: the annotations' own
    format: Literal["auto", "coco", "voc", "yolo"] = "auto"  # auto: recognised from the files
    classes: Words | None = None  # the vocabulary, in order; None: the files' own
    sites_in_path: bool = False  # the first folder below the root (or its part) is the site
    site_key: str | None = None  # COCO: what the entries of `images` call their site
    # VOC: the number of the first pixel; 0: edges from zero; None: 1, unless boxes start at 0
    first_pixel: Literal[0, 1] | None = None

    def locations(self) -> dict[str, Path]:
        """The annotations and the image folder."""
        given = {"path": self.path, "test_path": self.test_path, "images": self.images}
        return {key: path for key, path in given.items() if path is not None}

    def open(self) -> Dataset:
        """Read annotations and images; DataError names the file and the line or entry at fault."""
        found = self.read(self.path)
        if self.test_path is not None:
            refuse_overlap(self.path, self.test_path)
            found = joined(found, self.read(self.test_path), self.test_path)
        opened = dataset(found.images, self, str(self.path), self.classes or found.names)
        notes = (*found.notes, *cures(found.passed_over))
        return opened.read_from(found.passed_over, notes)

    def read(self, root: Path, shapes: bool = False) -> Found:
        """The images below `root`, and the class names that the files have.

        With `shapes`, the objects of COCO and YOLO files keep their outlines. Raises DataError as
        `open` does.
        """
        kind = format_of(root) if self.format == "auto" else self.format
        if kind != "coco":
            need_pattern(self.group, "Pascal VOC and YOLO")
        if kind == "voc":
            found = self._voc(root)
        else:
            found = self._coco(root, shapes) if kind == "coco" else self._yolo(root, shapes)
        base = root if root.is_dir() else root.parent
        return replace(found, images=by_path(found.images, self.group, base))

    def _coco(self, root: Path, shapes: bool) -> Found:
        files = coco_files(root)
        if not files:
            raise DataError(f"'{root}' has no COCO file", "set data.path to the COCO JSON")
        images: list[Annotated] = []
        names: tuple[str, ...] = ()
        notes: tuple[str, ...] = unread(root) if root.is_file() and not self.test_path else ()
        for one in files:
            key = column(self.group)
            found = read_coco(one.file, True, self.site_key, key, shapes)
            names = (*names, *(name for name in found.categories if name not in names))
            folders = [Path(image.file).parts[:-1] for image in found.images]
            layout = arranged(map(bare, folders), one.file.parent, int(self.sites_in_path), False)
            tops = image_folders(one.file, self.images)
            for number, (image, above) in enumerate(zip(found.images, folders, strict=True)):
                place = layout.places[bare(above)]
                if one.part is not None or image.part is not None:
                    place = replace(place, part=one.part or image.part)
                where = f"{one.file}, images[{number}]: '{image.file}'"
                images.append(self._coco_image(image, tops, where, place))
            notes = (*notes, *layout.notes)
            if one.part is not None:
                notes = (*notes, f"'{one.file.name}' has the {NAMES[one.part]} part")
        return Found(images, names, notes, left_over(root, images))

    def _coco_image(
        self, image: CocoImage, folders: Sequence[Path], where: str, place: Place
    ) -> Annotated:
        objects = []
        for one in image.boxes:
            if one.box is None and one.shape is None:
                raise DataError(
                    f"{one.where}: it has neither a bbox nor a segmentation",
                    "export the boxes as well",
                )
            left, top, width, height = one.box or (0.0, 0.0, 0.0, 0.0)  # the shape says more
            box = (left, top, left + width, top + height)
            kinds = {"crowd": one.crowd, "outline": one.outline}
            objects.append(Object(one.category, box, one.where, **kinds, shape=one.shape))
        stated = None
        if image.width is not None and image.height is not None:
            stated = (image.width, image.height)
        site = image.site or self._site(place.folders, where)
        file = image_file(image.file, folders)
        return Annotated(str(file), tuple(objects), where, stated, site, place.part, image.group)

    def _voc(self, root: Path) -> Found:
        files = xml_files(root)
        folders = {path: bare(path.relative_to(root).parts[:-1]) for path in files}
        layout = arranged(folders.values(), root, int(self.sites_in_path), exact=False)
        known: dict[Path, ImageSets | None] = {}
        images: list[Annotated] = []
        listed: set[tuple[Path, str]] = set()
        unlisted = 0
        for path in files:
            place = layout.places[folders[path]]
            base = sets_above(path, root, known) if place.part is None else None
            if base is not None and (sets := known[base]) is not None:
                listed.add((base, path.stem))
                part = sets.parts.get(path.stem)
                if part is None:
                    unlisted += 1
                    continue
                place = replace(place, part=part)
            name, found = read_voc(path, 1 if self.first_pixel is None else self.first_pixel)
            file = picture_of(path, name, root, self.images)
            site = self._site(place.folders, str(path))
            shown = replace(found, path=str(file), site=site, part=place.part)
            images.append(shown)
        refuse_unfound(known, listed)
        if self.first_pixel is None:
            refuse_zeros(images)
        notes = layout.notes
        used = sorted(str(base) for base, sets in known.items() if sets is not None)
        if listed:
            notes = (*notes, *(f"parts as the image sets of '{base}' say" for base in used))
        if only_training(images) and listed:
            refuse_other_tests(str(root), "test images would be drawn from the others")
            images = [replace(image, part=None) for image in images]
            notes = (*notes, "nothing is listed for testing: test images are drawn from the others")
        names = tuple(sorted({o.label for image in images for o in image.objects}))
        counts = left_over(root, images)
        if unlisted:
            counts["in no image set"] = unlisted
            counts[WITHOUT] = counts.get(WITHOUT, 0) - unlisted
        kept = {reason: count for reason, count in counts.items() if count > 0}
        return Found(images, names, notes, kept)

    def _yolo(self, root: Path, shapes: bool) -> Found:
        found = yolo_set(root, self.sites_in_path)
        names = found.names or self.classes  # the numbers are those of the files
        if names is None:
            raise DataError(
                f"'{root}' has neither classes.txt nor a data.yaml with names",
                "add one (classes.txt has one class a line), or set data.classes",
            )
        lines = [labels_of(image.path, found.root) for image in found.images]
        notes = (*found.notes, *without_labels(found, lines))
        images = [
            self._yolo_image(image, file, names, {"keypoints": found.keypoints, "shapes": shapes})
            for image, file in zip(found.images, lines, strict=True)
        ]
        counts = left_over(root, images, [file for file in lines if file is not None])
        if found.unlisted:
            counts["in no part"] = counts.pop(WITHOUT, found.unlisted)
        return Found(images, names, notes, counts)

    def _yolo_image(
        self, image: YoloImage, lines: Path | None, names: Words, reading: dict[str, bool]
    ) -> Annotated:
        path = str(image.path)
        site = self._site(image.folders, path)
        bare = Annotated(path, (), image.where or path, None, site, image.part)
        if lines is None:  # in YOLO, an image without objects
            return bare
        try:
            size = upright(image.path)
        except DataError:
            if self.corrupt == "error":
                raise
            return bare  # it is left out later
        return replace(bare, objects=read_yolo(lines, names, size, **reading), where=str(lines))

    def _site(self, folders: tuple[str, ...], where: str) -> str | None:
        if not self.sites_in_path:
            return None
        if not folders:
            raise DataError(
                f"{where}: is not in the folder of a site",
                "move it into the folder of its site, or set data.sites_in_path = false",
            )
        return folders[0]
