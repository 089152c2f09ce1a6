"""How much memory this process can still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")  # where Linux shows control groups
_OWN_GROUPS = Path("/proc/self/cgroup")
_CACHE = ("active_file", "inactive_file")  # content of files, which gives way when memory is asked for


def available_memory() -> int:
    """Bytes of memory that this process can still take, with the limits that containers and job schedulers set."""
    import psutil

    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """What is left in each control group with a limit that this process is in, of version 1 or 2."""
    for folder in _own_groups():
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                limit, used, stat = ((folder / name).read_text() for name in (limit_file, used_file, "memory.stat"))
                if limit.strip() != "max":
                    counts = dict(line.split(maxsplit=1) for line in stat.splitlines())
                    yield int(limit) - int(used) + sum(int(counts.get(name, 0)) for name in _CACHE)
            except (OSError, ValueError):
                continue  # the group is of the other version, or has no limit


def _own_groups() -> Iterator[Path]:
    """The folders of the groups that may limit memory, from this process's own to the outermost.

    In a container the path can be the host's. Then only the outermost folder is there, and shows the container's group.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = _GROUPS / "memory" if controllers else _GROUPS
        folder = base / path.lstrip("/")
        yield from (group for group in (folder, *folder.parents) if group.is_relative_to(base))
