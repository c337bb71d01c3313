"""What the pixels of a mask stand for: class numbers, values or colours named in the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import DataError
from fedsight.data.images.pixels import Stored, read_stored

IGNORED = 255  # in targets: a pixel without a label
_UNKNOWN = 254  # while reading: a value or a colour without a meaning
_BLURRED = 8  # this many more values than classes: edges were smoothed
_LISTED = 4  # values or colours in a message
Numbers = npt.NDArray[np.uint8]


@dataclass
class Coding:
    """How pixels stand for classes.

    `values` and `colours` give those of each class, by name; colours are 0xRRGGBB. With neither, a
    grey value or a palette's number is the class number. `ignored` are values, or colours, of
    pixels without a label; None: the value 255, where classes beside the background show that
    masks are written so.
    """

    classes: tuple[str, ...]
    values: Mapping[str, Sequence[int]] = field(default_factory=dict)
    colours: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ignored: Sequence[int] | None = None
    _palette: dict[int, tuple[str, str]] = field(default_factory=dict)  # number: colour and file

    def numbers(self, data: bytes, path: str, where: str) -> Numbers:
        """The class numbers in a mask file's bytes [h, w] uint8, 255 where there is no label.

        Messages name its `path` and `where` that is listed. Raises DataError for a compression
        that changes values, 16 bits, transparency, and what stands for nothing.
        """
        stored, place = read_stored(data, path), f"{where}: mask '{path}'"
        if stored.lossy:
            raise DataError(*_lossy(place))
        values = self._opaque(stored, place)
        if stored.cut:
            raise DataError(*self._deep(values, place))
        if self.colours:
            return self._of_colours(_codes(stored, values), place)
        if values.shape[2] == 3:
            if not (values == values[..., :1]).all():
                raise DataError(*self._coloured(_codes(stored, values), place))
            values = values[..., :1]  # grey, saved as colour
        plain = values[..., 0]
        if stored.palette is not None:
            plain = self._of_palette(plain, stored.palette, place)
        return self._of_values(self._scaled(plain, stored), stored, place)

    def shape(self, data: bytes, path: str, where: str) -> npt.NDArray[np.bool_]:
        """Where a mask file of a single class, or object, is not black [h, w].

        Raises DataError as `numbers` does, and for more than one value or colour beside black.
        """
        stored, place = read_stored(data, path), f"{where}: mask '{path}'"
        if stored.lossy:
            raise DataError(*_lossy(place))
        values = self._opaque(stored, place)
        codes = values[..., 0] if values.shape[2] == 1 and stored.palette is None else None
        codes = _codes(stored, values) if codes is None else codes
        several = np.unique(codes[codes != 0])
        if len(several) > 1:
            blurred = ", as in a smoothed drawing" if len(several) > _BLURRED else ""
            raise DataError(
                f"{place} is that of one class, but has {len(several)} values or colours beside "
                f"black{blurred}",
                "draw it in black and one other value, without smoothing; or join the masks into "
                "one with the class of each pixel",
            )
        return np.asarray(codes != 0)

    def _opaque(self, stored: Stored, place: str) -> npt.NDArray[Any]:
        """The values without an alpha channel, which may hold nothing."""
        values = stored.values
        if stored.mode not in ("LA", "RGBA", "PA", "La", "RGBa"):
            return values
        if (values[..., -1] != 255).any():
            raise DataError(
                f"{place} has transparent pixels, whose class is not known",
                "save it without transparency, every pixel in the value or colour of its class",
            )
        return values[..., :-1]

    def _scaled(self, values: npt.NDArray[Any], stored: Stored) -> npt.NDArray[Any]:
        """Grey values of 1, 2 or 4 bits: as stored, or stretched to 255 if the settings say so.

        Pillow stretches 2 and 4 bits, and not 1.
        """
        if stored.mode == "1":
            named = {value for each in self.values.values() for value in each}
            return values * 255 if 255 in named and 1 not in named else values
        step = {"L;2": 85, "L;4": 17}.get(stored.raw, 1)
        if step == 1 or (self.values and not (np.isin(values // step, self._named())).all()):
            return values
        unstretched: npt.NDArray[Any] = values // step
        return unstretched

    def _named(self) -> list[int]:
        """The values that stand for something."""
        named = [value for name in self.classes for value in self.values.get(name, ())]
        return [*(named or range(len(self.classes))), *(self.ignored or (IGNORED,))]

    def _of_palette(
        self, values: npt.NDArray[Any], palette: npt.NDArray[np.uint8], place: str
    ) -> npt.NDArray[Any]:
        """A palette's numbers, or its greys where it holds nothing else.

        Raises DataError if a number has another colour than in an earlier mask: programs that
        make files small number the colours of each anew.
        """
        used, greys = np.unique(values), palette[:, 0]
        grey = (palette == palette[:, :1]).all() and used[-1] < len(palette)
        if grey and len(np.unique(greys[used])) == len(used):
            levels: npt.NDArray[Any] = greys[values]
            return levels
        for number in used[used < len(palette)].tolist():  # 255 is often beyond a short palette
            colour = "#" + bytes(palette[number]).hex()
            known, first = self._palette.setdefault(number, (colour, place))
            if known != colour:
                raise DataError(
                    f"{place}: number {number} of the palette is {colour}, but {known} in {first}",
                    "their numbers do not mean the same; set data.colours, the colour of each "
                    f"class: {self._example('colours')}",
                )
        return values

    def _of_values(self, values: npt.NDArray[Any], stored: Stored, place: str) -> Numbers:
        deep = values.dtype != np.uint8
        if deep and (not self.values or values.dtype.kind == "f"):
            raise DataError(*self._deep(values, place))
        table = np.full(65536, _UNKNOWN, np.uint8)
        table[list((IGNORED,) if self.ignored is None else self.ignored)] = IGNORED
        for number, name in enumerate(self.classes):
            table[list(self.values.get(name, ())) if self.values else number] = number
        inside = (values >= 0) & (values < len(table))
        found = np.where(inside, table[np.where(inside, values, 0)], np.uint8(_UNKNOWN))
        if (found == _UNKNOWN).any():
            raise DataError(*self._unknown_values(values, found == _UNKNOWN, place))
        white = int(np.count_nonzero(found == IGNORED)) if self.ignored is None else 0
        if white and not ((found > 0) & (found != IGNORED)).any():
            raise DataError(
                f"{place} has no class beside '{self.classes[0]}', and 255, which stands for no "
                f"label, in {_pixels(white)}",
                f"if 255 is a class, name the value of each: {self._example('values', (0, 255))}; "
                "if not, set data.ignored = [255]",
            )
        return found

    def _deep(self, values: npt.NDArray[Any], place: str) -> tuple[str, str]:
        """Cause and cure for more than 8 bits."""
        return (
            f"{place} has 16 bits or more per pixel (values {values.min()} to {values.max()}), "
            "as if it numbered objects",
            "save the class of each pixel as an 8-bit grey image, or name the value of each "
            f"class: {self._example('values')}",
        )

    def _of_colours(self, codes: npt.NDArray[np.int64], place: str) -> Numbers:
        pairs = [(code, IGNORED) for code in self.ignored or ()]
        for number, name in enumerate(self.classes):
            pairs += [(code, number) for code in self.colours.get(name, ())]
        known, numbers = np.array(sorted(pairs), dtype=np.int64).T
        spots = np.searchsorted(known, codes).clip(max=len(known) - 1)
        wrong = known[spots] != codes
        if wrong.any():
            colours = _counted(codes[wrong], "#{:06x}")
            blurred = len(np.unique(codes[wrong])) > _BLURRED
            raise DataError(
                f"{place} has colours that data.colours does not name: {colours}"
                + ("; the edges seem to be smoothed" if blurred else ""),
                "draw it without smoothing and save it as PNG; or add the colours to "
                "data.colours, or to data.ignored if their pixels have no label",
            )
        found: Numbers = numbers[spots].astype(np.uint8)
        return found

    def _unknown_values(
        self, values: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], place: str
    ) -> tuple[str, str]:
        """Cause and cure for values without a meaning."""
        listed = _counted(values[wrong], "{}")
        usual = f"are not class numbers (0 to {len(self.classes) - 1}, or 255 for no label)"
        kind = "data.values does not name" if self.values else usual
        cause = f"{place} has values that {kind}: {listed}"
        present = np.unique(values)
        several = len(present)
        if several > len(self.classes) + _BLURRED:
            return (
                f"{cause}; there are {several} different values, as in a smoothed drawing, a "
                "photograph or a mask that numbers objects",
                "draw it without smoothing and save the class of each pixel",
            )
        example = self._example("values", present.tolist())
        return cause, f"correct the mask, or name the value of each class: {example}"

    def _coloured(self, codes: npt.NDArray[np.int64], place: str) -> tuple[str, str]:
        """Cause and cure for a mask in colour when no colours are named."""
        cause = f"{place} is in colour ({_counted(codes.ravel(), '#{:06x}')})"
        if len(np.unique(codes)) > len(self.classes) + _BLURRED:
            cause += ", with the many colours of a smoothed drawing or a photograph"
        return cause, f"name the colour of each class: {self._example('colours')}"

    def _example(self, setting: str, found: Sequence[int] = ()) -> str:
        """A line of a config that maps a mask with the values `found`."""
        shown = [f'"#{colour}"' for colour in ("000000", "800000", "008000")]
        if setting == "values":
            shown = [str(value) for value in (found if len(found) > 1 else (0, 255))]
        pairs = [
            f"{_bare(name)} = {value}" for name, value in zip(self.classes, shown, strict=False)
        ]
        more = ", ..." if len(self.classes) > len(pairs) else ""
        return f"data.{setting} = {{{', '.join(pairs)}{more}}}"


def _lossy(place: str) -> tuple[str, str]:
    """Cause and cure for a compression that changes values."""
    return (
        f"{place} is a JPEG or compressed like one, which changes class numbers at edges",
        "save masks as PNG, from the original drawing",
    )


def _bare(name: str) -> str:
    """A name as a key of TOML."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", name)
    return name if plain else json.dumps(name, ensure_ascii=False)


def _codes(stored: Stored, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The colour of each pixel as 0xRRGGBB [h, w]."""
    if stored.palette is not None:
        known = np.full(256, 1 << 24, np.int64)  # no colour at all, beyond the palette
        known[: len(stored.palette)] = stored.palette.astype(np.int64) @ (1 << 16, 1 << 8, 1)
        looked_up: npt.NDArray[np.int64] = known[values[..., 0]]
        return looked_up
    if values.shape[2] == 1:
        values = np.repeat(values * 255 if stored.mode == "1" else values, 3, axis=2)
    wide = values.astype(np.int64)
    codes: npt.NDArray[np.int64] = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return codes


def _counted(values: npt.NDArray[Any], form: str) -> str:
    """The most frequent values, and how many pixels have each."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = [f"{form.format(found[i])} in {_pixels(counts[i])}" for i in order[:_LISTED]]
    more = f" and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
    return ", ".join(listed) + more


def _pixels(count: int) -> str:
    return f"{count:,} pixel{'' if count == 1 else 's'}"
