"""Files written whole or not at all (kept in the core, where every room can reach it)."""

from fedsight.core.files import write_atomically

__all__ = ["write_atomically"]
