"""A gallery at rest: unread without its key, unaltered unnoticed, and who is erased is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedsight.core.errors import DataError, DeployError, StoreError
from fedsight.run import gallery as g
from fedsight.run.recognise import enrol


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
        other.create()
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
    "text", [b"", b"no gallery", b"[]\n", b"{}\nx", b'{"fedsight_gallery": 9}\n']
)
def test_what_is_no_gallery_is_refused(tmp_path: Path, text: bytes) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    secret.create()
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
    assert len(secret.path.read_text().split()) == 1
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


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_crash_while_erasing_leaves_a_gallery_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    path, secret = tmp_path / "gallery", g.KeyFile(tmp_path / "key")
    g.write(path, filled(), secret)
    real, writes = g.write_atomically, []

    def crash(file: Path, data: bytes, mode: int = 0o666) -> None:
        writes.append(file)
        if len(writes) == crash_at:
            raise KeyboardInterrupt
        real(file, data, mode)

    monkeypatch.setattr(g, "write_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        g.erase(path, "Bob", secret)
    monkeypatch.undo()
    assert "Ada Lovelace" in g.read(path, secret).people  # nobody else was lost
    if "Bob" in g.read(path, secret).people:
        g.erase(path, "Bob", secret)
    else:
        g.erase(path, "Ada Lovelace", secret)
    assert len(secret.path.read_text().split()) == 1


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
