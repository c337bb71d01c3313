"""The plan of the house, kept: who may import whom, and how long files and functions may be."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator

import house
import pytest
from house import imports, lines, modules


@pytest.fixture(scope="module", autouse=True)
def _trees_go() -> Iterator[None]:
    """The syntax trees of the whole package are large."""
    yield
    house.tree.cache_clear()


def reach(name: str) -> set[str]:
    """All that is imported when `name` is, the packages around it included."""
    seen: set[str] = set()
    left = [name]
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in modules():
            left += imports(module, deferred=False)
            left += [parent for parent in [module.rpartition(".")[0]] if parent]
    return seen


def test_rooms_import_only_the_rooms_below_them() -> None:
    assert list(house.upward()) == []


def test_modules_import_one_another_without_a_cycle() -> None:
    assert list(house.cycles()) == []


def test_report_needs_no_torch() -> None:
    heavy = {"torch", "timm"}
    needs = {name: reach(name) for name in modules() if house.room(name) == "report"}
    assert needs
    found = {name: {one.split(".")[0] for one in all} & heavy for name, all in needs.items()}
    assert {name: some for name, some in found.items() if some} == {}


def test_importing_the_package_alone_is_light() -> None:
    assert reach("fedsight") & {"torch", "timm", "torchvision", "matplotlib"} == set()


def test_only_the_adapter_and_the_operator_session_know_nvflare() -> None:
    knows = {name for name in modules() if any(i.split(".")[0] == "nvflare" for i in imports(name))}
    adapter = {name for name in knows if name.startswith("fedsight.deploy.flare.")}
    assert knows == adapter | {"fedsight.deploy.server.operator_session"}


@pytest.mark.parametrize("suffix", [".py", ".html", ".toml"])
def test_no_file_is_longer_than_one_can_read(suffix: str) -> None:
    lengths = {str(path): lines(path) for path in house.ROOT.rglob(f"*{suffix}")}
    assert {path: n for path, n in lengths.items() if n > house.LONGEST_FILE} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    assert [found for found in house.functions() if found[0] > house.LONGEST_FUNCTION] == []


def test_no_function_takes_seven_parameters_except_commands() -> None:
    assert [found for found in house.parameters() if found[0] > house.MOST_PARAMETERS] == []


# Beside the client step: what lists the devices of a machine, and what tells before a run that the
# one that was asked for is not there. Speed settings carry its name to the client step as a text.
KNOW_DEVICES = {
    "fedsight.cli.doctor",  # says which there are
    "fedsight.core.devices",
    "fedsight.client.bound_model",
    "fedsight.client.company",  # seeds the generator of the device, for each group of sites
    "fedsight.client.distillation",  # seeds the generator of the device, at the coordinator
    "fedsight.client.failures",  # tells what a device's failures are
    "fedsight.client.step",
    "fedsight.client.per_image",  # seeds the generator of the device, for each image
    "fedsight.program.kept",  # of what computed them, kept values are told apart by the processor
    "fedsight.program.program",
}


def switches_off(call: ast.Call) -> bool:
    """Whether it is `torch.autocast(..., enabled=False)`."""
    return ast.unparse(call.func) == "torch.autocast" and any(
        one.arg == "enabled" and ast.unparse(one.value) == "False" for one in call.keywords
    )


def test_nothing_but_the_client_step_chooses_a_device() -> None:
    """Everything else computes where its tensors are; `tests/*/*_devices.py` try that.

    It may switch lower precision off, which chooses nothing.
    """
    knows = {name for name in modules() if "fedsight.core.devices" in imports(name)}
    assert knows | {"fedsight.core.devices"} == KNOW_DEVICES
    for name in set(modules()) - KNOW_DEVICES:
        nodes = list(ast.walk(house.tree(name)))
        off = [node.func for node in nodes if isinstance(node, ast.Call) and switches_off(node)]
        for node in nodes:
            where = f"{name}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and node not in off:
                assert node.attr not in ("cuda", "mps", "autocast", "set_default_device"), where
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.fullmatch(r"(cuda|mps)(:\d+)?", node.value), where


def test_half_of_the_modules_are_short() -> None:
    lengths = [lines(path) for path in modules().values()]
    assert statistics.median(n for n in lengths if n > 1) <= 1.1 * house.MEDIAN_FILE


def test_every_module_opens_with_a_sentence() -> None:
    texts = {name: ast.get_docstring(house.tree(name)) or "" for name in modules()}
    ends = {name: text.split("\n\n")[0].rstrip()[-1:] for name, text in texts.items()}
    assert {name: texts[name] for name, end in ends.items() if end not in (".", ":")} == {}
