"""What a file is that was given for a data set and is not one: an archive, a workbook, a photo."""

from __future__ import annotations

from pathlib import Path

from fedsight.core.files import opened

_EXTRACT = "extract it, and give what is inside"
_AS_CSV = "save the sheet as CSV (UTF-8), and give that file"
_AS_TABLE = "save it as CSV, or with datasets' save_to_disk for data.name = 'huggingface'"
_FOLDER = "give the folder of the images, or the file that lists them"
_KINDS = (  # by the first bytes
    (b"PAR1", "a Parquet file", _AS_TABLE),
    (b"\x1f\x8b", "a gzip archive", _EXTRACT),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _EXTRACT),
    (b"Rar!", "a RAR archive", _EXTRACT),
    (b"\xfd7zXZ", "an xz archive", _EXTRACT),
    (b"BZh", "a bzip2 archive", _EXTRACT),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook or another Office file", _AS_CSV),
    (b"\x89PNG", "an image", _FOLDER),
    (b"\xff\xd8\xff", "an image", _FOLDER),
    (b"%PDF", "a PDF document", _FOLDER),
    (b"\x93NUMPY", "a NumPy array", "save the images as files in folders of their classes"),
    (b"\x89HDF", "an HDF5 file", "save the images as files in folders of their classes"),
    (b"SQLite format 3", "an SQLite database", "save the table as CSV (UTF-8)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
)
_WORKBOOKS = frozenset({".xlsx", ".xlsm", ".xlsb", ".ods"})
_TAR = (257, b"ustar")
_HEAD = 512


def mistaken(path: Path) -> tuple[str, str] | None:
    """What the file `path` is, by its first bytes, and the cure.

    None for a text, for a file that cannot be read, and for what is not known.
    """
    try:
        with opened(path) as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return None
    if head.startswith(b"PK\x03\x04"):
        if path.suffix.lower() in _WORKBOOKS:
            return "an Excel workbook", _AS_CSV
        return "a ZIP archive", _EXTRACT
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "a tar archive", _EXTRACT
    return next(((what, cure) for magic, what, cure in _KINDS if head.startswith(magic)), None)
