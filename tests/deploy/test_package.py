"""The hash of the installed code covers each module, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsight
from fedsight.core.errors import RefusedError
from fedsight.deploy.package import hash_of, installed, require_same, stated


def test_a_changed_line_a_new_module_and_another_name_change_the_hash(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    module = tmp_path / "client" / "step.py"
    module.write_text("lr = 0.1")
    (tmp_path / "__init__.py").write_text("")
    seen = [hash_of(tmp_path)]
    (tmp_path / "page.html").write_text("no code")
    (tmp_path / "client" / "__pycache__").mkdir()
    (tmp_path / "client" / "__pycache__" / "step.pyc").write_bytes(b"compiled")
    assert hash_of(tmp_path) == seen[0]
    module.write_text("lr = 0.2")
    seen.append(hash_of(tmp_path))
    (tmp_path / "client" / "more.py").write_text("")
    seen.append(hash_of(tmp_path))
    module.rename(tmp_path / "client" / "walk.py")
    seen.append(hash_of(tmp_path))
    assert len(set(seen)) == 4


def test_the_installed_package_is_this_one() -> None:
    ours = installed()
    assert ours.version == fedsight.__version__
    assert ours.sha256 == hash_of(Path(fedsight.__file__).parent)
    assert stated(ours.table()) == ours
    require_same(ours.table(), "lyon")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "does not say which FedSight it runs"),
        ({"version": "0.0.9", "sha256": "a" * 64}, "runs FedSight 0.0.9 (aaaaaaaaaaaa)"),
        ({"version": "0.0.9", "sha256": 7}, "runs FedSight 0.0.9 (7)"),
        ([1], "does not say which FedSight it runs"),
    ],
)
def test_another_package_is_refused(table: object, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        require_same(table, "lyon")
    assert caught.value.cause.startswith(f"site 'lyon' {said}, and the coordinator ")
