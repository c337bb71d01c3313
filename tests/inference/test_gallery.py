"""A gallery at rest: unread without its key, unaltered unnoticed, and who is erased is gone."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from fedsight.core.errors import DataError, DeployError, StoreError
from fedsight.inference import gallery as g
from fedsight.inference.recognition import enrol


def filled() -> g.Gallery:
    one = g.Gallery("model", threshold=0.5, far=0.01)
    enrol(one, "Ada Lovelace", torch.tensor([[0.6, 0.8], [0.8, 0.6]]))
    enrol(one, "Bob", torch.tensor([[1.0, 0.0]]))
    return one


@pytest.fixture(params=["key file", "passphrase"])
def secret(request: pytest.FixtureRequest, tmp_path: Path) -> g.Secret:
    if request.param == "key file":
        return g.KeyFile(tmp_path / "key")
    return g.Passphrase("correct horse")


def test_what_is_written_is_read_and_lies_there_unreadable(
    tmp_path: Path, secret: g.Secret
) -> None:
    path = tmp_path / "gallery"
    g.write(path, filled(), secret)
    assert g.read(path, secret) == filled()
    held = path.read_bytes()
    assert b"Ada" not in held
    assert b"0.6" not in held
    assert path.stat().st_mode & 0o077 == 0


def test_another_key_does_not_open_it(tmp_path: Path, secret: g.Secret) -> None:
    path = tmp_path / "gallery"
    g.write(path, filled(), secret)
    other: g.Secret = g.Passphrase("wrong")
    if isinstance(secret, g.KeyFile):
        other = g.KeyFile(tmp_path / "other")
        other.add("another")
    with pytest.raises(StoreError, match="cannot be opened"):
        g.read(path, other)


def test_no_altered_byte_goes_unnoticed(tmp_path: Path) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StoreError):
            g.read(path, secret)
    path.write_bytes(whole[:-5])
    with pytest.raises(StoreError):
        g.read(path, secret)


def test_a_tampered_line_cannot_ask_for_endless_work(tmp_path: Path) -> None:
    path, secret = tmp_path / "gallery", g.Passphrase("correct horse")
    g.write(path, filled(), secret)
    line, sealed = path.read_bytes().split(b"\n", 1)
    header = {**json.loads(line), "n": 1 << 40}
    path.write_bytes(json.dumps(header).encode() + b"\n" + sealed)
    with pytest.raises(StoreError, match="altered"):
        g.read(path, secret)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no gallery",
        b"[]\n",
        b"{}\nx",
        b'{"fedsight_gallery": 9}\n',
        b'{"fedsight_gallery": 2}\n',
    ],
)
def test_what_is_no_gallery_is_refused(tmp_path: Path, text: bytes) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    secret.add("0")
    path.write_bytes(text)
    with pytest.raises(StoreError):
        g.read(path, secret)


def test_the_kind_of_key_must_be_the_gallerys(tmp_path: Path) -> None:
    key, phrase = g.KeyFile(tmp_path / "key"), g.Passphrase("correct horse")
    for number, (own, other) in enumerate(((key, phrase), (phrase, key))):
        path = tmp_path / f"gallery{number}"
        g.write(path, filled(), own)
        with pytest.raises(StoreError, match="passphrase"):
            g.read(path, other)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    secret.path.chmod(0o644)
    with pytest.raises(DeployError, match="0644"):
        g.read(path, secret)
    secret.path.unlink()
    with pytest.raises(StoreError, match="no key file"):
        g.read(path, secret)


def test_the_erased_are_gone_and_the_others_stay(tmp_path: Path, secret: g.Secret) -> None:
    path = tmp_path / "gallery"
    g.write(path, filled(), secret)
    assert g.erase(path, "Ada Lovelace", secret) == 2
    assert list(g.read(path, secret).people) == ["Bob"]
    with pytest.raises(StoreError, match="Ada"):
        g.erase(path, "Ada Lovelace", secret)


def test_after_erasing_the_key_opens_no_copy_of_the_old_gallery(tmp_path: Path) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    old, old_key = path.read_bytes(), secret.path.read_bytes()
    g.erase(path, "Bob", secret)
    assert len(secret.path.read_text().splitlines()) == 1
    assert secret.path.read_bytes() != old_key
    backup = tmp_path / "backup"
    backup.write_bytes(old)
    with pytest.raises(StoreError, match="cannot be opened"):
        g.read(backup, secret)


def test_the_bytes_of_the_old_file_are_overwritten(tmp_path: Path) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    with path.open("rb") as old, secret.path.open("rb") as old_key:
        g.erase(path, "Bob", secret)
        assert not any(old.read())
        assert not any(old_key.read())


def interrupt(
    monkeypatch: pytest.MonkeyPatch, path: Path, secret: g.Secret, after: int, name: str = "Bob"
) -> None:
    """Erase a person, and be stopped after so many of the three files were written."""
    real, writes = g.write_atomically, []

    def crash(file: Path, data: bytes, mode: int = 0o666) -> None:
        writes.append(file)
        if len(writes) > after:
            raise KeyboardInterrupt
        real(file, data, mode)

    with monkeypatch.context() as patched:
        patched.setattr(g, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            g.erase(path, name, secret)


AFTER = pytest.mark.parametrize("after", [0, 1, 2])


@AFTER
def test_a_crash_while_erasing_is_finished_by_erasing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    backup = tmp_path / "backup"
    backup.write_bytes(path.read_bytes())
    interrupt(monkeypatch, path, secret, after)
    assert "Ada Lovelace" in g.read(path, secret).people  # nobody else was lost
    assert len(secret.path.read_text().splitlines()) == (1 if after == 0 else 2)
    with contextlib.nullcontext() if after < 2 else pytest.raises(StoreError, match="Bob"):
        g.erase(path, "Bob", secret)
    assert list(g.read(path, secret).people) == ["Ada Lovelace"]
    assert len(secret.path.read_text().splitlines()) == 1
    with pytest.raises(StoreError, match="cannot be opened"):
        g.read(backup, secret)


@AFTER
def test_a_crash_while_erasing_is_finished_by_any_other_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    interrupt(monkeypatch, path, secret, after)
    kept = g.read(path, secret)
    enrol(kept, "Cleo", torch.tensor([[0.0, 1.0]]))
    g.write(path, kept, secret)
    assert "Cleo" in g.read(path, secret).people
    assert len(secret.path.read_text().splitlines()) == 1


@AFTER
def test_a_change_that_is_interrupted_again_and_again_loses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    for _ in range(3):
        with contextlib.suppress(StoreError):  # erased in spite of the interruption
            interrupt(monkeypatch, path, secret, after)
        assert "Ada Lovelace" in g.read(path, secret).people
    with contextlib.suppress(StoreError):
        g.erase(path, "Bob", secret)
    assert list(g.read(path, secret).people) == ["Ada Lovelace"]
    assert len(secret.path.read_text().splitlines()) == 1


def test_galleries_share_a_key_file_and_none_loses_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = g.KeyFile(tmp_path / "key")
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        g.write(path, filled(), secret)
    g.erase(one, "Bob", secret)
    assert g.read(other, secret) == filled()
    interrupt(monkeypatch, one, secret, 1, "Ada Lovelace")
    g.erase(other, "Bob", secret)
    assert [list(g.read(path, secret).people) for path in (one, other)] == [["Ada Lovelace"]] * 2
    g.erase(one, "Ada Lovelace", secret)
    assert not g.read(one, secret).people
    assert g.read(other, secret).people
    assert len(secret.path.read_text().splitlines()) == 2


def test_processes_that_change_galleries_under_one_key_file_wait_for_each_other(
    tmp_path: Path,
) -> None:
    secret = g.KeyFile(tmp_path / "key")
    paths = [tmp_path / f"gallery{number}" for number in range(4)]
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(lambda path: g.write(path, filled(), secret), paths))
        list(pool.map(lambda path: g.erase(path, "Bob", secret), paths))
    assert all(list(g.read(path, secret).people) == ["Ada Lovelace"] for path in paths)


@pytest.mark.parametrize("which", ["gallery", "key"])
@pytest.mark.parametrize("moment", ["opened", "read"])
def test_who_reads_while_another_process_erases_reads_the_old_or_the_new(
    tmp_path: Path, which: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old bytes are overwritten, and the old key is gone: neither may be taken for damage."""
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    names = ["Ada Lovelace", "Bob"]

    def erase_one() -> None:
        monkeypatch.undo()
        g.erase(path, names.pop(), secret)

    def open_late(self: Path, mode: str = "r", **more: Any) -> IO[Any]:
        file: IO[Any] = opened(self, mode, **more)
        if self.name == which and moment == "opened":
            erase_one()
        return file

    def read_late(file: Path) -> bytes:
        found = content(file)
        if file.name == which and moment == "read":
            erase_one()
        return found

    opened, content = Path.open, g._content
    monkeypatch.setattr(g, "_content", read_late)
    if moment == "opened":
        monkeypatch.setattr(Path, "open", open_late)
    both_read = (which, moment) == ("key", "read")  # before the change
    assert len(g.read(path, secret).people) == (2 if both_read else 1)
    assert names == ["Ada Lovelace"]


@pytest.mark.parametrize("text", ["", "0", "0 00\n", "no key file at all\n"])
def test_what_is_no_key_file_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    secret.path.write_text(text)
    secret.path.chmod(0o600)
    with pytest.raises(StoreError, match="is not a key file"):
        g.write(path, filled(), secret)
    assert secret.path.read_text() == text
    assert not path.exists()


def test_a_full_disk_leaves_the_old_gallery(tmp_path: Path) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    partial = next(iter([path.with_name(f".{path.name}.{__import__('os').getpid()}.partial")]))
    partial.mkdir()  # nothing can be written there
    with pytest.raises(StoreError):
        g.write(path, g.Gallery("model"), secret)
    assert g.read(path, secret) == filled()


def test_a_person_needs_a_name() -> None:
    with pytest.raises(DataError, match="name"):
        enrol(g.Gallery("model"), "  ", torch.ones(1, 2))
