"""What every room's tests may use: a tiny federation, and runs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import tinysites
from hypothesis import settings

from fedsight.deploy import demo
from fedsight.program.federation import Federation

# Two cores are shared with worker processes, so no example is judged by its time.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def forked() -> Iterator[None]:
    """Processes of sites and servers are forked from one that has imported PyTorch once."""
    with demo.prefork_process():
        yield


@pytest.fixture(scope="session")
def tiny_federation() -> Callable[..., Federation]:
    """`tiny_federation(train={"lr": 0.1}, algorithm={"name": "fedprox"}, ...)`: 3 sites of 40
    images [1, 14, 14], 60 test images, a small network, 2 rounds; sections as in a config file."""
    return tiny.federation


@pytest.fixture(scope="session")
def site_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the sites in `tinysites`."""
    folder = tmp_path_factory.mktemp("images")
    tinysites.draw(folder)
    return folder


@pytest.fixture(scope="session")
def places(
    site_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tinysites.Places]:
    """Three sites with images of their own, and a trainer process for each."""
    data = {site: {"name": "folder", "path": str(site_images / site)} for site in tinysites.SITES}
    found = tinysites.Places(tmp_path_factory.mktemp("sites"), data)
    yield found
    found.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with real processes wait for them a lot: they come first, while others can run."""
    items.sort(key=lambda item: not item.path.name.endswith(("_deployed.py", "_admission.py")))
