"""What Linux says of a process (`proc_pid_stat(5)`); elsewhere nothing is known of any."""

from __future__ import annotations

from pathlib import Path


def is_suspended(pid: int) -> bool:
    """Whether a signal (SIGSTOP) or a debugger holds the process."""
    return _facts(pid)[:1] in (["T"], ["t"])


def parent(pid: int) -> int:
    """The process whose child it is; 0 if there is none."""
    return int(found[1]) if len(found := _facts(pid)) > 1 else 0


def children(pid: int) -> list[int]:
    """The processes that its first thread has started and that are still there."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def started(pid: int) -> int | None:
    """When the process began, in ticks of the machine's clock; None if there is none. Another
    process that gets its number later has another time."""
    return int(found[19]) if len(found := _facts(pid)) > 19 else None


def _facts(pid: int) -> list[str]:
    """Fields 3 and more: from the process's state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
