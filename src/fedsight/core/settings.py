"""`Settings`: the frozen, validated, hashable value that every part of a program is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of everything a user can write in a config file.

    Fields are typed, immutable and checked on construction; unknown fields are refused.
    `registered` is the name under which a registry holds the class (None for a plain section).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    registered: ClassVar[str | None] = None

    def table(self) -> dict[str, Any]:
        """The settings as plain values (for TOML and JSON), led by the registered name if any."""
        values = self.model_dump(mode="json")
        return values if self.registered is None else {"name": self.registered, **values}

    def meaning(self) -> dict[str, Any]:
        """`table()` without locations: where a file lies says nothing about what is in it.

        A location that is not set stays, since that there is no such file does mean something.
        """
        return {
            key: value
            for key, value in self.table().items()
            if not isinstance(getattr(self, key, None), Path)
        }

    def needs(self) -> tuple[str, ...]:
        """The data sets that must have been fetched (`fedsight data get NAME`), by name."""
        return ()

    def anchored(self, base: Path) -> Self:
        """The same settings with relative paths meant from `base`."""
        paths = {
            key: base / value
            for key in type(self).model_fields
            for value in [getattr(self, key)]
            if isinstance(value, Path) and not value.is_absolute()
        }
        return self.model_copy(update=paths) if paths else self
