"""Which sites have a network of their own: `[[model.groups]]`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fedsight.core.settings import Settings

Names = Annotated[tuple[str, ...], Field(strict=False)]


class ModelGroup(Settings):
    """Sites whose network differs: `[[model.groups]]`.

    Any other key is a setting of that network, such as `width`. Without a `name` it is the network
    of `[model]` with these settings changed.
    """

    model_config = ConfigDict(extra="allow")

    sites: Names  # names or wildcards: "site-0*"
    name: str | None = None  # of the network; None: that of [model]

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.sites:
            raise ValueError("a group needs sites")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not set: tables in a list of TOML have no other way to say so."""
        return {key: value for key, value in write(self).items() if value is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the network."""
        return dict(self.model_extra or {})

    def pattern(self, site: str) -> str | None:
        """Which of its patterns names the site; None: none does."""
        return next((one for one in self.sites if fnmatchcase(site, one)), None)


def group_of(groups: Iterable[ModelGroup], site: str) -> int | None:
    """The number of the first group that a site is in; None: it has the network of `[model]`."""
    return next((at for at, one in enumerate(groups) if one.pattern(site) is not None), None)
