"""The hash of the installed code covers each module, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tomli_w
from attacked_site import draw, noise_images, program

import fedsight
from fedsight.core import package
from fedsight.core.errors import DeployError, RefusedError, SiteError
from fedsight.core.package import hash_of, installed, require_same, require_unchanged, stated
from fedsight.deploy.site.delivery import process
from fedsight.deploy.site.delivery.received import Received, ReceivedOrder
from fedsight.deploy.site.opening import open_images
from fedsight.deploy.site.owner import read_owner


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


def test_a_file_is_read_again_only_when_it_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    module, other = tmp_path / "step.py", tmp_path / "walk.py"
    module.write_text("lr = 0.1")
    other.write_text("lr = 0.3")
    seen = [hash_of(tmp_path), hash_of(tmp_path)]
    assert len(read) == 4, "what was changed just now may be changed again in the same tick"
    monkeypatch.setattr(package, "SETTLED", -1.0)
    seen += [hash_of(tmp_path), hash_of(tmp_path)]
    assert len(read) == 6
    assert len(set(seen)) == 1
    times = module.stat()
    module.write_text("lr = 0.2")  # as long as before, and of the same time
    os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_of(tmp_path) != seen[0]
    assert read[6:] == ["step.py"]


def test_what_is_no_module_neither_counts_nor_prevents_the_hash(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text("lr = 0.1")
    before = hash_of(tmp_path)
    (tmp_path / ".#step.py").symlink_to("anna@ward.1234")  # an editor's lock
    (tmp_path / "._step.py").write_bytes(b"what a file system notes")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "step.py").write_text("lr = 0.2")
    (tmp_path / "gone.py").symlink_to("nowhere.py")
    (tmp_path / "folder.py").mkdir()
    assert hash_of(tmp_path) == before
    (tmp_path / "linked.py").symlink_to("step.py")
    assert hash_of(tmp_path) != before, "it can be imported"


def test_the_installed_package_is_this_one() -> None:
    ours = installed()
    assert ours.version == fedsight.__version__
    assert ours.sha256 == hash_of(Path(fedsight.__file__).parent)
    assert stated(ours.table()) == ours
    require_same(ours.table(), "lyon")


def test_code_that_is_replaced_while_a_site_runs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most modules are imported only when a run needs them."""
    module = tmp_path / "__init__.py"
    module.write_text("lr = 0.1")
    monkeypatch.setattr(fedsight, "__file__", str(module))
    installed.cache_clear()
    try:
        require_unchanged()
        stated_before = installed()
        module.write_text("lr = 0.2")
        assert installed() == stated_before, "it says which code it was started with"
        with pytest.raises(SiteError) as caught:
            require_unchanged()
        assert "since the site or server started" in caught.value.cause
        module.write_text("lr = 0.1")
        require_unchanged()
    finally:
        installed.cache_clear()


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


def test_code_that_the_owner_has_not_listed_opens_no_image(tmp_path: Path) -> None:
    """Neither when a site starts, nor when it makes its recogniser."""
    home = tmp_path / "ward"
    home.mkdir()
    images = draw(tmp_path / "images", noise_images(6))
    data = {"name": "folder", "path": str(images)}
    (home / "owner.toml").write_text(
        tomli_w.dumps({"data": data, "contract": {"packages": ["e" * 64]}})
    )
    with pytest.raises(DeployError, match=r"contract\.packages") as caught:
        open_images(read_owner(home / "owner.toml", None))
    assert caught.value.cure
    what = program(images)
    order = ReceivedOrder(
        "run", what.fingerprint, what.table(), "ward", "memory", 1, 0, 0, "e" * 64, 0
    )
    with pytest.raises(DeployError, match=r"contract\.packages"):
        process._delivered(Received(home), "key", order)
