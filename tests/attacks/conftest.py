"""Sites that tests attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attacked_site
import pytest
from attacked_site import AttackedSite


@pytest.fixture
def attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., AttackedSite]]:
    """`attack("one", images, epsilon=3.0)`: a new site with these images and this contract."""
    attacked_site.install(monkeypatch)
    made: list[AttackedSite] = []

    def make(name: str, images: Path | dict[str, Any], **contract: Any) -> AttackedSite:
        made.append(AttackedSite(tmp_path / name, images, **contract))
        return made[-1]

    yield make
    for site in made:
        site.close()
