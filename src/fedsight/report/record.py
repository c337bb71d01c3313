"""What all records of run files share: values that are missing, and numbers of any size."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

PICTURES = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
LARGEST = 10**200  # sums of numbers up to this still fit a float


def _held(value: Any) -> Any:
    """A number of any size as one that can be computed with; a count that is not finite is None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return max(-LARGEST, min(LARGEST, value))


def _figure(value: Any) -> Any:
    """A figure as a float; one that is too large to compute with is infinite."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > LARGEST:
        return math.inf if value > 0 else -math.inf
    return value


Count = Annotated[int | None, BeforeValidator(_held)]
Cell = Annotated[int, BeforeValidator(_held)]
Figure = Annotated[float | None, BeforeValidator(_figure)]
Real = Annotated[float, BeforeValidator(_figure)]


def checked_picture(value: str) -> str:
    """A picture in base64; ValueError for anything else."""
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is not base64") from error
    if not raw.startswith(tuple(PICTURES.values())):
        raise ValueError("is not a PNG or JPEG image")
    return value


class Record(BaseModel):
    """Base class; unknown keys are ignored, so that newer runs stay readable.

    Null is the same as a missing key: not measured.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {key: value for key, value in given.items() if value is not None}
