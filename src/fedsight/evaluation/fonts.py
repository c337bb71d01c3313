"""Fonts for labels that are drawn on images: Pillow's own has no Chinese, Japanese or Korean."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts")
_MORE = ("/System/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts")
# parts of the names of files of usual fonts, the best first
_NAMES = ("notosanscjk", "sourcehansans", "notosanssc", "wqy-microhei", "wqy-zenhei", "wenquanyi")
_OTHERS = (
    "pingfang",
    "hiragino",
    "msyh",
    "simhei",
    "droidsansfallback",
    "uming",
    "ukai",
    "unifont",
)
_SUFFIXES = (".ttc", ".ttf", ".otf", ".otc")
_PROBE = "\u4e2d"  # a character that every such font has
CJK_CURE = "install one, such as fonts-noto-cjk, for labels in these scripts on drawn images"


def plain(text: str) -> bool:
    """Whether Pillow's own font has every character of `text`."""
    return all(ord(character) < 0x250 for character in text)


@cache
def cjk_font() -> str | None:
    """The file of a font with Chinese characters; None if there is none."""
    return next((file for file in (*_by_fontconfig(), *_by_name()) if _has(file)), None)


@cache
def font_for(wide: bool, size: int = 10) -> Font:
    """The font for a label: Pillow's own, or with `wide` one that has other scripts."""
    file = cjk_font() if wide else None
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size + 2)


def _by_fontconfig() -> list[str]:
    """What `fc-list` knows for Chinese."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    command = [program, ":lang=zh", "file"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return []
    return sorted(line.strip().rstrip(":") for line in told.stdout.splitlines() if line.strip())


def _by_name() -> list[str]:
    """Fonts in the usual folders, by the names of their files."""
    wanted, found = (*_NAMES, *_OTHERS), []
    for folder in (*_FOLDERS, *_MORE):
        for file in Path(folder).expanduser().rglob("*"):
            name = file.name.lower()
            if file.suffix.lower() in _SUFFIXES and any(one in name for one in wanted):
                found.append(str(file))
    return sorted(found, key=lambda file: min(_rank(file, one, wanted) for one in wanted))


def _rank(file: str, name: str, wanted: tuple[str, ...]) -> int:
    return wanted.index(name) if name in Path(file).name.lower() else len(wanted)


def _has(file: str) -> bool:
    """Whether a font opens and draws a Chinese character as something else than a missing one."""
    try:
        font = ImageFont.truetype(file, 24)
        missing, shown = font.getmask("\uffff"), font.getmask(_PROBE)
    except (OSError, ValueError):
        return False
    return bytes(missing) != bytes(shown) and shown.getbbox() is not None
