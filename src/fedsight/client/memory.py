"""What sites remember between rounds, on their own disk, with one version per round.

A version written in round r is seen only by later rounds. A run that returns to an earlier
checkpoint first removes the versions after it, so a memory is neither lost nor applied twice.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedsight.core.errors import StoreError
from fedsight.core.files import file_name, make_folder, refuse_links, write_atomically
from fedsight.core.types import Memory

LAST = 10**9  # a round after all of them


class MemoryStore:
    """Stores versions as `folder/<site>/<round>.safetensors`, the site as `file_name` writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self, site: str) -> dict[str, Tensor]:
        """The newest memory, as `load` has it for a round after all of them."""
        return self.load(site, LAST)

    def load(self, site: str, round: int) -> dict[str, Tensor]:
        """The newest memory from before `round`; empty if the site has none.

        Raises StoreError when its file is broken.
        """
        if not self.folder.exists():  # most algorithms keep no memory
            return {}
        earlier = [version for version in self._versions(site) if version < round]
        if not earlier:
            return {}
        path = self._path(site, max(earlier))
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"the memory of site '{site}', {path}, is broken: {error}",
                "restore that file from a copy, or start the run again with another --out",
            ) from error

    def save(self, site: str, round: int, memory: Memory) -> None:
        """Keep `memory` as the version of `round`; StoreError if that fails."""
        path = self._path(site, round)
        make_folder(path.parent)
        write_atomically(path, save(dict(memory)))

    def lacks(self, site: str, round: int) -> bool:
        """Whether only later versions are there: what was remembered after `round` was removed."""
        versions = self._versions(site)
        return bool(versions) and min(versions) > round

    def prune(self, site: str, durable: int) -> None:
        """Remove versions that no run resumed from round `durable` or later can need."""
        old = [version for version in self._versions(site) if version <= durable]
        for version in sorted(old)[:-1]:
            self._path(site, version).unlink(missing_ok=True)

    def rewind(self, round: int, site: str | None = None) -> None:
        """Remove every version after `round`, of one site or of all."""
        home = self.folder if site is None else self._home(site)
        refuse_links(self.folder.parent, self.folder.name)
        if round == 0:
            shutil.rmtree(home, ignore_errors=True)
            return
        for path in home.rglob("[0-9]*.safetensors"):
            if _is_number(path.stem) and int(path.stem) > round:
                path.unlink()

    def _home(self, site: str) -> Path:
        """The site's folder; an id such as `../ward/3` must not lead out of the store."""
        name = file_name(site)
        refuse_links(self.folder.parent, Path(self.folder.name, name))
        return self.folder / name

    def _path(self, site: str, round: int) -> Path:
        return self._home(site) / f"{round:06d}.safetensors"

    def _versions(self, site: str) -> list[int]:
        stems = (path.stem for path in self._home(site).glob("[0-9]*.safetensors"))
        return [int(stem) for stem in stems if _is_number(stem)]


def _is_number(stem: str) -> bool:
    """Whether a file's name is that of a version; others may lie beside them."""
    return stem.isascii() and stem.isdigit()
