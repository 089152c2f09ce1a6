"""Who may import whom. `LAYERS` is the rule inside the packages: a file sees the layers before its own, and no others.

Between packages: nas.py -> search -> {predictors, evaluators} -> search_space. All imports count, also those inside
functions and those for type checkers alone.
"""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What files of a package may import beside the package itself.
BELOW = {
    "version": (),
    "search_space": (),
    "predictors": ("search_space",),
    "evaluators": ("search_space",),
    "search": ("predictors", "evaluators", "search_space", "version"),
    "__init__": ("search", "version"),
    "nas": ("__init__", "search", "predictors", "evaluators", "search_space"),
}

# By package, from the bottom up. A name stands for a file or for a folder with all that is in it, but for what is named
# more closely; names on one line do not see each other. "__init__" is the package's own: nothing inside imports that.
LAYERS = {
    "search_space": """
        config
        graph.operators  graph.shaped_file
        units  graph.torch_nodes  graph.onnx_file  graph.onnx_windows  presets  space  probes
        blocks  graph.torch_tracer  graph.onnx_tensors  graph.onnx_inputs  scaling
        heads  graph.onnx_network
        graph.from_config  graph.onnx_patterns  graph.onnx_shapes
        model  graph.onnx_translation  graph.onnx_writer
        checkpoints  graph.onnx_rearrangements
        graph.onnx_operators
        graph.onnx_reader
        graph  spaces
        __init__
    """,
    "predictors": """
        costs  memory  latency.kernels  latency.machine  latency.profiles  model_files
        accuracy  latency.runtimes  latency.kernel_terms
        latency.target  latency.fusion  latency.kernel_model
        latency.stacked_model  latency.unit_costs  latency.sampling
        latency.uncertainty  latency.undisturbed  latency.sizes
        latency.predictor  latency.sentinel_history
        latency.fitting
        latency.measurement_log
        latency.measuring  latency.profile_fit
        latency.calibration
        latency
        __init__
    """,
    "evaluators": """
        data.records  data.memory  device.agent  device.quantize
        data.crops
        data.fractals  data.plain_pickle  data.pictures  device.kernel_times  tasks
        data.sources  data.feeding  device.latency_record  device.advice
        data.loading  device.runtimes
        device.measure
        device.remote  training
        data  device
        __init__
    """,
    "search": """
        quantities  randomness  paths  command_options
        settings
        trials
        feasible_pool
        objectives
        strategies  latency  training
        results
        loop
        predicted
        run_search
        devices  doctor
        given
        elements.linear_attention  elements.looks_file
        elements.catalog
        elements.measuring
        elements.costs
        elements.findings
        elements.figures  elements.smaller_space  elements.page
        elements.api
        elements.shown
        elements
        final
        api
        __init__
    """,
}


def module_of(path: Path) -> str:
    """ "search.trials.history" for search/trials/history.py, "search.trials" for its folder's __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def files() -> dict[str, Path]:
    """All files of the project that are no tests and no experiments, by module."""
    packages = [path for package in LAYERS for path in (ROOT / package).rglob("*.py")]
    return {module_of(path): path for path in (*packages, *ROOT.glob("*.py"))}


def imported(path: Path) -> set[str]:
    """What a file imports: modules of this project as in `files`, and the top-level names of libraries."""
    found: set[str] = set()
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(_ours(name.name.split("."), None) or name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                base = ["lownas", *package[: len(package) - node.level + 1], *base]
            found.update(_ours(base, name.name) or base[0] for name in node.names)
    return found


def _ours(parts: list[str], name: str | None) -> str | None:
    """The module that `from PARTS import NAME` needs, None for a library; NAME is a module or something in one."""
    if parts[0] != "lownas":
        return None
    inside = ".".join(parts[1:])
    within = f"{inside}.{name}".removeprefix(".")
    module = within if name is not None and within in files() else inside or "__init__"
    assert module in files(), f"there is no {module}"
    return module


@cache
def graph() -> dict[str, frozenset[str]]:
    """By module, the modules of this project that it imports."""
    return {module: frozenset((imported(path) & files().keys()) - {module}) for module, path in files().items()}


def place(module: str) -> tuple[int, str]:
    """The layer of a module in its package and the name that it stands under there; the closest one counts."""
    package, _, inside = module.partition(".")
    lines = [line.split() for line in LAYERS[package].strip().splitlines()]
    inside = inside or "__init__"
    named = [
        (len(name), layer, name)
        for layer, names in enumerate(lines)
        for name in names
        if inside == name or inside.startswith(f"{name}.")
    ]
    assert named, f"{module} has no layer"
    _, layer, name = max(named)
    return layer, name


@pytest.mark.parametrize("package", BELOW)
def test_packages_see_what_is_below_them(package: str) -> None:
    for module, others in graph().items():
        if module.split(".")[0] == package:
            seen = {other.split(".")[0] for other in others} - {package}
            assert seen <= set(BELOW[package]), f"{module} imports {sorted(seen - set(BELOW[package]))}"


@pytest.mark.parametrize("package", LAYERS)
def test_files_see_the_layers_below_them(package: str) -> None:
    for module, others in graph().items():
        if module.split(".")[0] != package:
            continue
        layer, name = place(module)
        for other in sorted(others):
            if other.split(".")[0] == package:
                below, its_name = place(other)
                assert below < layer or name == its_name, f"{module} imports {other}"


def test_there_are_no_circles() -> None:
    tuple(TopologicalSorter(graph()).static_order())  # raises CycleError


def test_every_name_of_a_layer_is_there() -> None:
    for package, lines in LAYERS.items():
        for name in lines.split():
            path = ROOT / package / Path(*name.split("."))
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{package}.{name}"


def test_a_rule_that_is_broken_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**graph(), "predictors.costs": frozenset({"evaluators.device.agent.lock", "predictors.accuracy.prior"})}
    monkeypatch.setitem(globals(), "graph", lambda: broken)
    with pytest.raises(AssertionError, match=r"predictors\.costs imports \['evaluators'\]"):
        test_packages_see_what_is_below_them("predictors")
    with pytest.raises(AssertionError, match=r"predictors\.costs imports predictors\.accuracy\.prior"):
        test_files_see_the_layers_below_them("predictors")
    with pytest.raises(ValueError, match="cycle"):
        test_there_are_no_circles()


def test_ray_is_imported_where_it_is_started_and_where_many_train_one_network() -> None:
    using = {module for module, path in files().items() if "ray" in imported(path)}
    assert using == {"search.training.ray_cluster", "search.training.ray_pool", "search.final.distributed"}


def test_every_package_is_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    tops = (*LAYERS, "experiments")
    folders = [path.parent.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("__init__.py")]
    assert sorted(listed) == sorted(["lownas", *(".".join(("lownas", *folder.parts)) for folder in folders)])
    for path in (path for top in LAYERS for path in (ROOT / top).rglob("*.py")):
        assert (path.parent / "__init__.py").is_file(), f"{path} is in no package"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "from lownas.predictors import LatencyPredictor; from lownas.search_space import PRESETS;"
            "LatencyPredictor.load('rtx3090').predict([PRESETS['lowformer_b1']])",
            {"torch", "ray", "optuna", "onnx"},
        ),
        ("import lownas.predictors.latency.calibration, lownas.evaluators.device.measure", {"ray", "optuna"}),
        ("from lownas.nas import main; main(['--help'])", {"torch", "ray", "optuna", "onnx", "numpy"}),
        ("from lownas.search_space import SearchSpace; SearchSpace.load('default')", {"torch", "ray", "optuna"}),
        ("import lownas, lownas.search", {"numpy", "optuna", "torch", "ray", "pydantic"}),
        ("from lownas.search.settings import options; options()", {"numpy", "optuna", "torch", "ray"}),
        ("import lownas.search.run_search, lownas.search.api", {"torch", "ray", "onnx", "onnxruntime", "sklearn"}),
    ],
)
def test_heavy_parts_load_late(code: str, absent: set[str]) -> None:
    check = f"{code}\nimport sys\nfound = {absent!r} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
