"""Fits to the times of whole graphs: all coefficients at once, or overhead and scale of a fitted model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..kernel_model import KernelModel
from ..kernel_terms import COEFFICIENTS, COMPUTE_TERMS, Array, physical_terms
from ..kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels
from .kernel_times import KERNEL_FAMILIES, LEAST_COEFFICIENT, cold_shares, with_ranges

PULL_TO_PRIOR = 0.03
"""Residual, in log units, that it costs a coefficient to leave its prior by a factor of e."""
LOG_ERROR_SCALE = 0.3
"""Log error of a graph from which on `least_squares` counts errors less (soft L1)."""
MOST_LOG_COEFFICIENT = 50.0
"""Log coefficients beyond would overflow."""
FAMILY_RIDGE = 0.03
"""Weight of the ridge in the fit of families, in relative errors of the graphs."""

TYPICAL_OVERHEAD_MS = 0.05
"""Standard deviation about 0 that the time of a graph beside its kernels is expected to have."""
TYPICAL_ERROR = 0.03
"""Relative error of a graph, against which the expected overhead is weighed."""
TYPICAL_LAUNCH_MS = 0.002
"""Standard deviation of the launch of a class's kernels about what their own times tell, in ms."""
TYPICAL_SCALE = 0.05
"""Standard deviation of the scale, once that of all launches is known."""
SCALE_REWEIGHTINGS, LAUNCH_REWEIGHTINGS = 20, 5
"""Rounds of least squares, between which the weights of outliers are lowered."""
OUTLIER_MEDIANS = 2.0
"""Errors above so many median errors count less."""


def fit_graphs(
    graphs: Sequence[Kernels],
    times_ms: Array,
    fusion: str,
    *,
    block: int = 0,
    sharpness: float = 2.0,
    prior: KernelModel | None = None,
    strength: float = PULL_TO_PRIOR,
    weights: Array | None = None,
    kept: int = 0,
) -> KernelModel:
    """Fits all coefficients at once to whole-graph times, for runtimes that report no kernel times.

    Minimizes log errors (soft L1), with every log coefficient drawn towards `prior`, or towards a common value of its
    family of classes.

    Args:
        graphs: kernels of each graph.
        times_ms: (graphs,) measured times.
        fusion, block, sharpness: as in `KernelModel`.
        prior: a model of a related target.
        strength: of the prior: the residual, in log units, that leaving it by a factor of e costs.
        weights: (graphs,) of the errors; equal by default.
        kept: as in `KernelModel`.
    """
    from scipy.optimize import least_squares

    times_ms = np.asarray(times_ms, dtype=np.float64)
    problem = _GraphTimes(graphs, times_ms, block, sharpness, kept)
    start = problem.coefficients_by_family() if prior is None else prior.coefficients
    start = np.maximum(start, LEAST_COEFFICIENT)
    begin = np.append(np.log(start[problem.free]), np.log(max(1e-3, 0.02 * float(times_ms.min()))))
    root = np.ones(len(graphs)) if weights is None else np.sqrt(weights)

    def residuals(logs: Array) -> Array:
        return np.concatenate([root * problem.evaluate(logs)[0], strength * (logs - begin)])

    def jacobian(logs: Array) -> Array:
        return np.concatenate([root[:, None] * problem.evaluate(logs)[1], strength * np.eye(len(logs))])

    solved = least_squares(residuals, begin, jac=jacobian, loss="soft_l1", f_scale=LOG_ERROR_SCALE, max_nfev=200)
    coefficients = start.copy() if prior is not None else np.zeros_like(start)
    coefficients[problem.free] = np.exp(solved.x[:-1])
    coefficients[coefficients <= 2 * LEAST_COEFFICIENT] = 0
    model = KernelModel(
        fusion=fusion,
        block=block,
        coefficients=coefficients,
        sharpness=sharpness,
        overhead_ms=float(np.exp(solved.x[-1])),
        kept=kept,
    )
    return with_ranges(model, graphs)


class _GraphTimes:
    """Times of whole graphs as a function of the log coefficients, with its derivatives.

    Attributes:
        free: (classes, terms) of the F coefficients that the graphs depend on, as indices of an array of coefficients.
    """

    def __init__(self, graphs: Sequence[Kernels], times_ms: Array, block: int, sharpness: float, kept: int) -> None:
        from scipy.sparse import csr_matrix

        self._times_ms = times_ms
        self._sharpness = sharpness
        table = Kernels(np.concatenate([graph.table for graph in graphs]))
        kernels = len(table)
        self._codes = table.column("class")
        self._compute, self._memory = physical_terms(table, block, cold=cold_shares(graphs, kept))
        self._terms = np.concatenate([np.ones((kernels, 1)), self._compute, self._memory], axis=1)
        self._graph_of = np.repeat(np.arange(len(graphs)), [len(graph) for graph in graphs])
        self._sums = csr_matrix((np.ones(kernels), (self._graph_of, np.arange(kernels))), shape=(len(graphs), kernels))
        self._rows_of = {code: np.flatnonzero(self._codes == code) for code in np.unique(self._codes)}
        pairs = [
            (code, term)
            for code, rows in self._rows_of.items()
            for term in range(len(COEFFICIENTS))
            if self._terms[rows, term].any()
        ]
        index = np.array(pairs)
        self.free = (index[:, 0], index[:, 1])
        self._pairs = pairs

    def evaluate(self, logs: Array) -> tuple[Array, Array]:
        """(graphs,) log of fitted over measured times, and its (graphs, F + 1) derivatives.

        Args:
            logs: (F + 1,) logarithms of the free coefficients and of the overhead.
        """
        coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
        coefficients[self.free] = np.exp(np.minimum(logs[:-1], MOST_LOG_COEFFICIENT))
        mine = coefficients[self._codes]
        split = 1 + len(COMPUTE_TERMS)
        p = self._sharpness
        compute_ms = (self._compute * mine[:, 1:split]).sum(1)
        memory_ms = (self._memory * mine[:, split:]).sum(1)
        both = (compute_ms**p + memory_ms**p) ** (1 / p)
        safe = np.maximum(both, 1e-300)
        by_compute, by_memory = (compute_ms / safe) ** (p - 1), (memory_ms / safe) ** (p - 1)
        fitted = np.asarray(self._sums @ (mine[:, 0] + both)) + np.exp(logs[-1])
        slopes = np.empty((len(self._times_ms), len(logs)))
        for position, (code, term) in enumerate(self._pairs):
            rows = self._rows_of[code]
            slope = self._terms[rows, term] * coefficients[code, term]
            if term:
                slope = slope * (by_compute if term < split else by_memory)[rows]
            slopes[:, position] = np.bincount(self._graph_of[rows], slope, minlength=len(self._times_ms))
        slopes[:, -1] = np.exp(logs[-1])
        return np.log(fitted / self._times_ms), slopes / fitted[:, None]

    def coefficients_by_family(self) -> Array:
        """Coefficients to begin with, as far as whole-graph times tell the families of classes apart."""
        return _coefficients_by_family(self._terms, self._codes, self._graph_of, self._times_ms)


def _coefficients_by_family(
    terms: Array, codes: NDArray[np.int64], graph_of: NDArray[np.int64], times_ms: Array
) -> Array:
    """(len(KERNEL_CLASSES), len(COEFFICIENTS)) coefficients, equal within a family, to begin a fit with.

    Args:
        terms: (K, len(COEFFICIENTS)) of all kernels.
        codes, graph_of: (K,) class and graph of each kernel.
        times_ms: (graphs,) measured times.
    """
    from scipy.optimize import nnls

    columns, owners = [], []
    for number, family in enumerate(KERNEL_FAMILIES):
        rows = np.flatnonzero(np.isin(codes, [KERNEL_CLASS[name] for name in family]))
        for term in range(terms.shape[1]):
            total = np.bincount(graph_of[rows], terms[rows, term], minlength=len(times_ms))
            if total.any():
                columns.append(total)
                owners.append((number, term))
    design = np.stack(columns, axis=1) / times_ms[:, None]
    size = design.max(axis=0)
    # A little ridge shares the time out among terms that the graphs cannot tell apart.
    ridge = FAMILY_RIDGE * np.sqrt(len(times_ms)) * np.eye(len(size))
    target = np.concatenate([np.ones(len(times_ms)), np.zeros(len(size))])
    solution = nnls(np.concatenate([design / size, ridge]), target)[0] / size
    least = 1e-3 / size / len(size)
    result = np.zeros((len(KERNEL_CLASSES), terms.shape[1]))
    for (number, term), value, floor in zip(owners, solution, least, strict=True):
        result[[KERNEL_CLASS[name] for name in KERNEL_FAMILIES[number]], term] = max(value, floor)
    return result


def fit_scale(
    model: KernelModel,
    graphs: Sequence[Kernels],
    times_ms: Array,
    weights: Array | None = None,
    *,
    typical_overhead_ms: float = TYPICAL_OVERHEAD_MS,
) -> KernelModel:
    """`model` with overhead and scale fitted to whole-graph times by robust non-negative least squares.

    Args:
        model: with coefficients of every class.
        graphs, times_ms: (graphs,) whole graphs and their times.
        weights: (graphs,) of the errors; equal by default.
        typical_overhead_ms: standard deviation about 0 that the overhead is expected to have.

    Raises:
        ValueError: times that do not grow with the graphs' work.
    """
    from scipy.optimize import nnls

    sums = np.array([model.kernel_ms(graph).sum() for graph in graphs])
    weights = np.ones(len(sums)) if weights is None else weights / weights.mean()
    design = np.stack([np.ones_like(sums), sums], axis=1) / times_ms[:, None]
    pull = np.array([[TYPICAL_ERROR / typical_overhead_ms, 0.0]])
    trust = weights.copy()
    solution = np.array([0.0, 1.0])
    for _ in range(SCALE_REWEIGHTINGS):
        root = np.sqrt(trust)
        solution, _ = nnls(np.concatenate([design * root[:, None], pull]), np.append(root, 0.0))
        error = np.abs(design @ solution - 1)
        typical = np.median(error) + 1e-4
        trust = weights * np.minimum(1, OUTLIER_MEDIANS * typical / np.maximum(error, 1e-12))
    if solution[1] <= 0:
        raise ValueError("the measured times do not grow with the networks' work: measure again on a quiet machine")
    return replace(model, overhead_ms=float(solution[0]), scale=float(solution[1]))


def fit_launches(
    model: KernelModel, graphs: Sequence[Kernels], times_ms: Array, weights: Array | None = None
) -> KernelModel:
    """`model` with overhead, scale and the launch of each class corrected by whole-graph times.

    A profiler counts in the times of single kernels, by microseconds that differ from class to class. Whole graphs
    tell them, as far as they have many short kernels. Robust least squares of relative errors; no launch gets negative.

    Args:
        model: with a scale (`fit_scale`), and compute and memory added up.
        graphs, times_ms: (graphs,) whole graphs and their times.
        weights: (graphs,) of the errors; equal by default.
    """
    from scipy.optimize import nnls

    counts = np.stack([np.bincount(graph.column("class"), minlength=len(KERNEL_CLASSES)) for graph in graphs])
    classes = np.flatnonzero(counts.any(axis=0))
    launches = model.coefficients[classes, 0]
    sums = np.array([model.kernel_ms(graph).sum() for graph in graphs])
    design = np.concatenate([np.ones((len(graphs), 1)), sums[:, None], counts[:, classes]], axis=1)
    design = design / times_ms[:, None] / TYPICAL_ERROR
    center = np.array([0.0, model.scale, *np.zeros(len(classes))])
    spread = np.array([TYPICAL_OVERHEAD_MS, TYPICAL_SCALE, *np.full(len(classes), TYPICAL_LAUNCH_MS)])
    least = np.array([0.0, model.scale / 2, *(-launches * model.scale)])
    weights = np.ones(len(graphs)) if weights is None else weights / weights.mean()
    trust, solution = weights.copy(), center
    for _ in range(LAUNCH_REWEIGHTINGS):
        root = np.sqrt(trust)
        matrix = np.concatenate([design * root[:, None], np.diag(1 / spread)])
        beyond, _ = nnls(matrix, np.append(root / TYPICAL_ERROR, center / spread) - matrix @ least)
        solution = least + beyond
        error = np.abs(TYPICAL_ERROR * (design @ solution) - 1)
        trust = weights * np.minimum(1, OUTLIER_MEDIANS * (np.median(error) + 1e-4) / np.maximum(error, 1e-12))
    coefficients = model.coefficients.copy()
    coefficients[classes, 0] = np.maximum(launches + solution[2:] / solution[1], 0)
    return replace(model, coefficients=coefficients, overhead_ms=float(solution[0]), scale=float(solution[1]))
