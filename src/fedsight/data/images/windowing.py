"""Converts the stored values of a DICOM image to grey or colour: rescales and windows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedsight.data.images.palette import MAX_COLOURS, has_too_many
from fedsight.data.images.pixels import Pixels

Values = npt.NDArray[Any]
Window = Literal["stored", "image", "bits"] | tuple[float, float]
Function = Literal["stored", "linear", "linear_exact", "sigmoid"]
Orientation = Literal["patient", "stored"]
Kept = Literal["refuse", "first", "middle"]


@dataclass(frozen=True)
class Reading:
    """How the values of a DICOM file become grey; stored with the model, so prediction agrees.

    `window`: `stored` is the file's own table or window (number `view` of several), or `image` if
    it has none; `image` spans the smallest to the largest value; `bits` spans all storable values;
    (centre, width) is in the unit after rescaling, such as Hounsfield. `frame`: the frame that is
    read of a file with several when none is asked for; `refuse`: an error.
    """

    window: Window = "stored"
    view: int = 0
    function: Function = "stored"
    orientation: Orientation = "patient"
    frame: Kept = "middle"

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Reading:
        """From plain values, as `asdict` and JSON have them; TypeError or ValueError for others."""
        if not isinstance(table, Mapping):
            raise TypeError("expected a table that says how DICOM files are read")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        found = cls(**fields)
        numbers = found.window if isinstance(found.window, tuple) else ()
        known = (
            (found.window, get_args(Window)[0]),
            (found.function, Function),
            (found.orientation, Orientation),
            (found.frame, Kept),
        )
        wrong = [word for word, words in known[bool(numbers) :] if word not in get_args(words)]
        if wrong or type(found.view) is not int or (numbers and not _is_window(numbers)):
            raise ValueError("unknown setting for reading DICOM files")
        return found


class UnclearError(Exception):
    """The values of a file are ambiguous; carries cause and cure."""


def _tools() -> Any:
    from pydicom import pixels

    return pixels


def _is_window(numbers: tuple[Any, ...]) -> bool:
    finite = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    return len(numbers) == 2 and finite and numbers[1] > 0


def grey(raw: Values, found: Any, reading: Reading) -> Pixels:
    """Stored values [h, w] -> [h, w, 1]."""
    _refuse_unclear(found, reading)
    unit = _unit(raw, _tools().apply_modality_lut(raw, found), found, reading)
    if found.PhotometricInterpretation == "MONOCHROME1":  # the smallest value is white
        unit = 1.0 - unit
    unit[_padding(raw, found)] = 0.0
    full, dtype = (255, np.uint8) if found.BitsStored <= 8 else (65535, np.uint16)
    return np.asarray(np.rint(unit * full).clip(0, full)[..., None], dtype)


_SPANS = "set data.window = 'image' or 'bits'"


def _refuse_unclear(found: Any, reading: Reading) -> None:
    """UnclearError for a file whose values have no unit that the window needs, or no window.

    An empty slope or intercept says nothing where the window is the span of the values, which is
    the same in any unit.
    """
    own = "WindowWidth" in found and found.get("WindowWidth") is not None
    own = own and found.get("WindowCenter") is not None
    stored = reading.window == "stored" and (own or found.get("VOILUTSequence"))
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if keyword in found and found.get(keyword) is None:
            if stored or isinstance(reading.window, tuple):
                raise UnclearError(
                    f"has an empty {keyword}, so that its values have no unit", _SPANS
                )
            for one in {"RescaleSlope", "RescaleIntercept"} & {
                element.keyword for element in found
            }:
                del found[one]
    if not found.get("ModalityLUTSequence") and found.get("RescaleSlope") == 0:
        raise UnclearError(
            "has a RescaleSlope of 0, which makes all values the same",
            "correct or remove it, or set data.corrupt = 'skip' to leave such files out",
        )
    function = str(found.get("VOILUTFunction") or "LINEAR").lower()
    function = function if reading.function == "stored" else reading.function
    least = 1.0 if function == "linear" else 0.0  # PS3.3, C.11.2.1.2.1 and C.11.2.1.3.2
    if isinstance(reading.window, tuple):
        width, whose = reading.window[1], "is read with a window"
        cure = "set a wider data.window, or data.function = 'linear_exact'"
    elif stored and not found.get("VOILUTSequence"):
        widths = found["WindowWidth"].value if found["WindowWidth"].VM > 1 else [found.WindowWidth]
        width = float(widths[min(reading.view, len(widths) - 1)])
        whose, cure = "has a window", f"{_SPANS}, or data.window = [centre, width]"
    else:
        return
    if width < least or width <= 0:
        raise UnclearError(f"{whose} of width {width:g} (WindowWidth)", cure)


def _unit(raw: Values, values: Values, found: Any, reading: Reading) -> Values:
    """Rescaled values [h, w] -> 0 to 1, by the window."""
    tools = _tools()
    window = reading.window
    if window == "stored" and found.get("VOILUTSequence"):
        index = min(reading.view, len(found.VOILUTSequence) - 1)
        full = 2.0 ** found.VOILUTSequence[index].LUTDescriptor[2] - 1
        whole = values if values.dtype.kind in "iu" else np.rint(values).astype(np.int64)
        return np.asarray(tools.apply_voi(whole, found, index) / full, np.float64)
    if window == "stored" and None in (found.get("WindowCenter"), found.get("WindowWidth")):
        window = "image"
    if window == "image":
        kept = values[~_padding(raw, found)]
        low, high = (kept.min(), kept.max()) if kept.size else (0, 0)
    elif window == "bits":
        if found.get("ModalityLUTSequence"):
            low, high = 0, 2 ** found.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        else:
            signed = found.PixelRepresentation
            most = 2 ** (found.BitsStored - signed)
            ends = tools.apply_modality_lut(np.array([-most if signed else 0, most - 1]), found)
            low, high = ends.min(), ends.max()
    else:
        if window != "stored":
            found.WindowCenter, found.WindowWidth = window
        if reading.function != "stored":
            found.VOILUTFunction = reading.function.upper()
        count = found["WindowWidth"].VM
        view = min(reading.view, count - 1) if window == "stored" else 0
        with np.errstate(over="ignore"):  # the ends of the sigmoid
            # pydicom answers in the unit of the stored bits; its answers at the ends are 0 and 1.
            low, high = tools.apply_windowing(np.array([-1e30, 1e30]), found, view)
            values = tools.apply_windowing(values, found, view)
    span = float(high) - float(low)
    unit = (values.astype(np.float64) - low) / span if span else np.zeros(values.shape)
    return np.asarray(np.clip(unit, 0.0, 1.0))


def _padding(raw: Values, found: Any) -> Values:
    """A mask [h, w] of padding, which shows nothing."""
    first = found.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(raw.shape, dtype=bool)
    last = found.get("PixelPaddingRangeLimit", first)
    low, high = sorted((first, last if isinstance(last, int) else first))
    return np.asarray((raw >= low) & (raw <= high))


def colour(raw: Values, found: Any) -> Pixels:
    """Stored values [h, w] of a palette, or [h, w, 3] (pydicom has made RGB of YBR)."""
    bits = int(found.BitsStored)
    if found.PhotometricInterpretation == "PALETTE COLOR":
        if has_too_many(found):
            raise UnclearError(
                f"has a palette of more than {MAX_COLOURS:,} colours",
                "convert it to RGB, or export it again",
            )
        raw = _tools().apply_color_lut(raw, found)[..., :3]
        bits = int(found.RedPaletteColorLookupTableDescriptor[2])
        bits = max(bits, 16) if raw.max(initial=0) > 255 else bits
    if bits > 16:
        raise UnclearError(f"has colours of {bits} bits", "save it with 8 or 16 bits per channel")
    if bits == 8:
        return raw.astype(np.uint8)
    full = 2**bits - 1
    wide = (raw.astype(np.uint64) * 65535 + full // 2) // full
    return np.asarray(wide.clip(0, 65535), np.uint16)
