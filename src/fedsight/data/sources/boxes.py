"""Images with boxes: COCO JSON, Pascal VOC XML and YOLO text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Location, Words, sources
from fedsight.data.detection.assembly import BoxSource, dataset
from fedsight.data.detection.coco import CocoImage, read_coco
from fedsight.data.detection.objects import Annotated, Object
from fedsight.data.detection.voc import read_voc
from fedsight.data.detection.yolo import labels_of, read_names, read_yolo
from fedsight.data.images.decode import upright
from fedsight.data.images.pixels import SUFFIXES
from fedsight.data.listing import is_picture, is_there
from fedsight.data.parts import PartName, part_named

Found = tuple[list[Annotated], tuple[str, ...]]  # images, and the class names of the files


@sources.add("boxes", reads="COCO JSON, Pascal VOC XML, YOLO text")
class Boxes(BoxSource):
    """Images with boxes around objects, for detection; the format is recognised from the files.

    `path` is a COCO JSON, a folder with Pascal VOC's XML files, or one with YOLO's text files. A
    folder may hold `train/` and `test/` (or `val/`, `valid/`); else `test_fraction` is held out.
    """

    path: Location  # the JSON, or the folder
    test_path: Location | None = None  # a second JSON or folder with the test part
    images: Location | None = None  # the folder of the images; None: the annotations' own
    format: Literal["auto", "coco", "voc", "yolo"] = "auto"  # auto: recognised from the files
    classes: Words | None = None  # the vocabulary, in order; None: the files' own
    sites_in_path: bool = False  # the first folder below the root (or its part) is the site
    site_key: str | None = None  # COCO: what the entries of `images` call their site
    first_pixel: Literal[0, 1] = 1  # VOC: the number of the first pixel; 0: edges from zero

    def locations(self) -> dict[str, Path]:
        """The annotations and the image folder."""
        given = {"path": self.path, "test_path": self.test_path, "images": self.images}
        return {key: path for key, path in given.items() if path is not None}

    def open(self) -> Dataset:
        """Read annotations and images; DataError names the file and the line or entry at fault."""
        found, names = self._read(self.path, None if self.test_path is None else "train")
        if self.test_path is not None:
            tested, others = self._read(self.test_path, "test")
            found, names = [*found, *tested], (*names, *(n for n in others if n not in names))
        return dataset(found, self, str(self.path), self.classes or names)

    def _read(self, root: Path, part: PartName | None) -> Found:
        """The images below `root`, and the class names that the files have."""
        readers: dict[str, Callable[[Path, PartName | None], Found]]
        readers = {"coco": self._coco, "voc": self._voc, "yolo": self._yolo}
        return readers[self._format(root)](root, part)

    def _format(self, root: Path) -> str:
        if self.format != "auto":
            return self.format
        if root.is_file():
            return "coco"
        return "voc" if next(root.rglob("*.xml"), None) else "yolo"

    def _coco(self, path: Path, part: PartName | None) -> Found:
        found = read_coco(path, judged=True, site_key=self.site_key)
        folder = self.images or path.parent
        return [self._coco_image(one, folder, path, part) for one in found.images], found.categories

    def _coco_image(
        self, image: CocoImage, folder: Path, path: Path, part: PartName | None
    ) -> Annotated:
        objects = []
        for one in image.boxes:
            if one.box is None:
                raise DataError(f"{one.where}: it has no bbox", "export the boxes as well")
            left, top, width, height = one.box
            box = (left, top, left + width, top + height)
            objects.append(Object(one.category, box, one.where, one.crowd))
        stated = None
        if image.width is not None and image.height is not None:
            stated = (image.width, image.height)
        where = f"{path}, image '{image.file}'"
        site = image.site or self._site(Path(image.file).parts[:-1], where)
        return Annotated(str(folder / image.file), tuple(objects), where, stated, site, part)

    def _voc(self, root: Path, part: PartName | None) -> Found:
        images: list[Annotated] = []
        for path in sorted(root.rglob("*.xml")):
            name, found = read_voc(path, self.first_pixel)
            file = self._picture(path, name, root)
            own, folders = _part(path.relative_to(root).parts[:-1], part)
            site = self._site(folders, str(path))
            images.append(Annotated(str(file), found.objects, str(path), found.stated, site, own))
        return images, tuple(sorted({o.label for image in images for o in image.objects}))

    def _picture(self, path: Path, name: str, root: Path) -> Path:
        """The image of a VOC file: by its name, beside it or in JPEGImages."""
        name = Path(name.replace("\\", "/")).name or path.stem
        below = path.parent.relative_to(root)
        folders = [path.parent, path.parent.parent / "JPEGImages"]
        if self.images is not None:
            folders = [self.images / below, self.images]
        for folder in folders:
            names = [name, *(path.stem + suffix for suffix in sorted(SUFFIXES))]
            for file in (folder / one for one in names):
                if is_there(file) and is_picture(str(file)):
                    return file
        raise DataError(
            f"'{path}': there is no image '{name}' in '{folders[0]}'",
            "set data.images to the images' folder",
        )

    def _yolo(self, root: Path, part: PartName | None) -> Found:
        names = self.classes or read_names(root)
        if names is None:
            raise DataError(
                f"'{root}' has no classes.txt", "add it, one class a line, or set data.classes"
            )
        images = [self._yolo_image(path, root, names, part) for path in _pictures(root)]
        return images, names

    def _yolo_image(
        self, path: Path, root: Path, names: tuple[str, ...], part: PartName | None
    ) -> Annotated:
        lines = labels_of(path, root)
        below = [p for p in path.relative_to(root).parts[:-1] if p != "images"]
        own, folders = _part(tuple(below), part)
        bare = Annotated(str(path), (), str(path), None, self._site(folders, str(path)), own)
        if lines is None:  # in YOLO, an image without objects
            return bare
        try:
            size = upright(path)
        except DataError:
            if self.corrupt == "error":
                raise
            return bare  # it is left out later
        objects = read_yolo(lines, names, size)
        return Annotated(bare.path, objects, str(lines), None, bare.site, own)

    def _site(self, folders: tuple[str, ...], where: str) -> str | None:
        if not self.sites_in_path:
            return None
        if not folders:
            raise DataError(
                f"{where}: is not in the folder of a site",
                "move it into the folder of its site, or set data.sites_in_path = false",
            )
        return folders[0]


def _part(
    folders: tuple[str, ...], part: PartName | None
) -> tuple[PartName | None, tuple[str, ...]]:
    """The part that the first folder names, if it names one, and the other folders."""
    if part is None and folders and (named := part_named(folders[0])):
        return named, folders[1:]
    return part, folders


def _pictures(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if is_picture(str(path)) and not hidden and path.is_file():
            yield path
