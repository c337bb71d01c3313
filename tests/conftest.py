"""What every room's tests may use: a tiny federation, and runs of it."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import command_line
import durations
import federations
import handout
import kinds
import pytest
import site_services
import torch
from hypothesis import settings
from shared_prefork import shared_prefork

from fedsight.engines.remote import messages
from fedsight.language.current import choose
from fedsight.program.federation import Federation

# Two cores are shared with worker processes, so no example is judged by its time.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --measure` says again which of the tests that it runs are slow.

    `pytest tests/gpu --accelerator cpu` runs the tests of a GPU on the CPU.
    """
    parser.addoption("--measure", action="store_true", help="write tests/durations.json")
    parser.addoption("--accelerator", help="the device of tests/gpu (default: the first GPU)")


def pytest_configure(config: pytest.Config) -> None:
    """The processes that run tests inherit the address of the one that forks for all of them."""
    if config.getoption("measure"):
        config.pluginmanager.register(durations.Measurement(config))
    # The networks are tiny: a second compute thread only waits for the first, and does so busily.
    # Processes that tests start read the variable; the engines set the number for themselves.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    english()
    if not hasattr(config, "workerinput"):
        stack = ExitStack()
        stack.enter_context(shared_prefork())
        config.add_cleanup(stack.close)


def english() -> None:
    """Messages are in English, whatever the locale; how characters are encoded stays as it is."""
    if given := os.environ.pop("LC_ALL", None):
        os.environ.setdefault("LC_CTYPE", given)
    os.environ["LC_MESSAGES"] = "C"


@pytest.fixture(autouse=True)
def language_of_the_environment() -> Iterator[None]:
    """A command with `--lang` chooses the language of its process: it is undone."""
    yield
    choose(None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays, so the garbage collector need not look at it again and
    again: that took a third of the time of collecting, and slowed all that collects garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# What is frozen when Python ends is never destroyed, and libtriton prints a page about each object
# of its own. It is not unfrozen before: when pytest ends it collects garbage five times.
atexit.register(gc.unfreeze)


@pytest.hookimpl(tryfirst=True)  # `-m` is to see the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with their kind, and slow ones, and put the files into the order in which they are
    handed out."""
    for item in items:
        if isinstance(item, pytest.Function):
            item.add_marker(kinds.kind_of(item))
        if durations.name_of(item) in durations.measured():
            item.add_marker("slow")
    files = {item: durations.file_of(item.nodeid) for item in items}
    waiting = {files[item] for item in items if item.get_closest_marker(kinds.DEPLOYED)}
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    ordered = handout.order(files.values(), durations.of_files(), waiting, processes)
    places = {name: place for place, name in enumerate(ordered)}
    items.sort(key=lambda item: places[files[item]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Reports of runs are drawn for tests that name them, and for the fixtures made for those."""
    command_line.Reports.drawn = isinstance(item, pytest.Function) and kinds.reads_report(item)
    return (yield)


@pytest.fixture
def vectors_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors travel in messages of their own, as where they are large or sites are many."""
    monkeypatch.setattr(messages, "ALONG", 0)


@pytest.fixture
def vectors_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors travel with questions and answers from the first round on, and after lost answers."""
    fits = messages.PieceSizer.fits

    def always(self: messages.PieceSizer, size: int) -> bool:
        self.fast = True
        return fits(self, size)

    monkeypatch.setattr(messages.PieceSizer, "fits", always)


@pytest.fixture(scope="session")
def tiny_federation() -> Callable[..., Federation]:
    """`tiny_federation(train={"lr": 0.1}, algorithm={"name": "fedprox"}, ...)`: 3 sites of 40
    images [1, 14, 14], 60 test images, a small network, 2 rounds; sections as in a config file."""
    return federations.federation


@pytest.fixture(scope="session")
def site_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the sites in `site_services`."""
    folder = tmp_path_factory.mktemp("images")
    site_services.draw(folder)
    return folder


@pytest.fixture(scope="session")
def places(
    site_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[site_services.Places]:
    """Three sites with images of their own, and a trainer process for each."""
    data = {
        site: {"name": "folder", "path": str(site_images / site)} for site in site_services.SITES
    }
    found = site_services.Places(tmp_path_factory.mktemp("sites"), data)
    yield found
    found.close()
