"""What the nodes of a Ray cluster have installed, compared with what is here before any of them is given work."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pool import describe_error

ANSWER_S = 120.0  # a node that is at work all over takes many seconds to start a process
SHOWN = 4  # differences that one line names
PARTS = ("evaluators", "predictors", "search", "search_space")  # the folders of this package that workers import

Versions = Mapping[str, str | None]  # by package; None where it is not installed


@dataclass(frozen=True)
class Needed:
    """A package that workers import.

    Attributes:
        module: its name when it is imported.
        alike: how many leading numbers of its version must be those of here; any version will do with 0.
    """

    module: str
    alike: int = 0


# Trainings wait in files of torch and are sent as arrays and configurations, which other releases may read otherwise.
NEEDED: Mapping[str, Needed] = {
    "ray": Needed("ray", 3),
    "torch": Needed("torch", 2),
    "numpy": Needed("numpy", 1),
    "pydantic": Needed("pydantic", 1),
    "safetensors": Needed("safetensors"),
    "pillow": Needed("PIL"),
    "kornia": Needed("kornia"),
    "psutil": Needed("psutil"),
}
_ALIKE = {"python": 2, **{name: needed.alike for name, needed in NEEDED.items()}}


def check_nodes(ray: Any, root: Path, *, others_only: bool = False) -> tuple[str, str]:
    """Compares what all nodes have installed with what is here; a node that joins later is not looked at.

    Args:
        ray: the module, connected to the cluster.
        root: the folder of this package, as it is here.
        others_only: whether the node of this process needs no look.

    Returns:
        What all have in common, and what differs but does no harm (empty if nothing does), each one line.

    Raises ValueError, in one line, where versions do not fit, a package is missing, or a node does not answer.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if others_only:
        nodes.pop(ray.get_runtime_context().get_node_id(), None)
    if not nodes:
        return "no other nodes", ""
    here = _looker()(_modules(), PARTS, str(root))
    there, silent = _ask(ray, nodes)
    if silent:
        raise ValueError(f"not all nodes can be given work: {_listed(silent, '; ')}")
    grave, harmless = compare(here, there)
    if grave:
        raise ValueError(f"what is installed on its nodes does not fit: {_listed(grave, '; ')}")
    shown = ", ".join(f"{name} {here[name]}" for name in ("python", "ray", "torch", "lownas"))
    return f"{len(nodes)} nodes with {shown}", _listed(harmless, "; ")


def compare(here: Versions, there: Mapping[str, Versions]) -> tuple[list[str], list[str]]:
    """What differs on nodes, by their names: what must not, and what may; one phrase for each version of a package.

    Of "python" and packages that are not in `NEEDED` ("lownas", whose version says what is in it) all must agree.
    """
    where: dict[tuple[str, str | None], list[str]] = {}
    for node, versions in there.items():
        for name, version in versions.items():
            if version is None or version != here.get(name):
                where.setdefault((name, version), []).append(node)
    grave, harmless = [], []
    for (name, version), names in where.items():
        phrase = f"{name} is {version or 'missing'} on {_listed(names, ', ')}"
        mine = here.get(name)
        if version is not None:
            phrase += f", but {mine or 'missing'} here"
        if version is None or (mine is not None and not _fits(name, version, mine)):
            grave.append(phrase)
        elif mine is not None and version.partition("+")[0] != mine.partition("+")[0]:
            harmless.append(phrase)
    return grave, harmless


def _fits(name: str, version: str, mine: str) -> bool:
    if name not in _ALIKE:
        return version == mine
    numbers = [re.findall(r"\d+", text.partition("+")[0])[: _ALIKE[name]] for text in (version, mine)]
    return numbers[0] == numbers[1]


def _modules() -> dict[str, str]:
    return {name: needed.module for name, needed in NEEDED.items()}


def _listed(items: Sequence[str], separator: str) -> str:
    left = len(items) - SHOWN
    return separator.join(items[:SHOWN]) + (f"{separator}and {left} more" if left > 0 else "")


def _ask(ray: Any, nodes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Versions], list[str]]:
    """What each node has, by its name, and why some could not say; a node that is lost meanwhile is neither."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=0)(_looker())
    asked = {
        node: look.options(scheduling_strategy=strategy(node, soft=False)).remote(_modules(), PARTS) for node in nodes
    }
    _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    found: dict[str, Versions] = {}
    silent: dict[str, str] = {}
    for node, future in asked.items():
        name = _name(nodes, node)
        if future in late:
            ray.cancel(future, force=True)
            silent[node] = f"{name} does not answer within {ANSWER_S:g} s"
            continue
        try:
            found[name] = ray.get(future)
        except ray.exceptions.RayError as error:
            silent[node] = f"{name}: {describe_error(error)}"
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if silent else set()
    return found, [reason for node, reason in silent.items() if node in alive]


def _name(nodes: Mapping[str, Mapping[str, Any]], node: str) -> str:
    """A node's address; where several have one, with the beginning of its identity in Ray."""
    address = str(nodes[node]["NodeManagerAddress"])
    shared = sum(str(other["NodeManagerAddress"]) == address for other in nodes.values()) > 1
    return f"{address} ({node[:6]})" if shared else address


def _looker() -> Callable[..., dict[str, str | None]]:
    """What looks at an installation.

    It is a function inside of another one, so that Ray sends all of it: where something is missing, this package could
    not be imported to find it.
    """

    def look(modules: Mapping[str, str], parts: Sequence[str], root: str | None = None) -> dict[str, str | None]:
        """Versions by package; of this one, in `root` or as it is imported, that and a digest of its sources."""
        import hashlib
        import importlib.util
        import platform
        from importlib import metadata
        from pathlib import Path

        found: dict[str, str | None] = {"python": platform.python_version()}
        for name, module in modules.items():
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "of no known version" if importlib.util.find_spec(module) else None
        if root is None:
            spec = importlib.util.find_spec("lownas")
            root = next(iter(spec.submodule_search_locations or ()), None) if spec else None
        found["lownas"] = None
        if root is not None and (Path(root) / "version.py").is_file():
            folder = Path(root)
            files = [file for part in parts for file in sorted((folder / part).rglob("*.py"))]
            digest = hashlib.sha256()
            for file in [folder / "__init__.py", folder / "version.py", *files]:
                digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
            version = (folder / "version.py").read_text().rpartition("=")[2].strip(" \"'\n")
            found["lownas"] = f"{version} ({digest.hexdigest()[:8]})"
        return found

    return look
