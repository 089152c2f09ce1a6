"""The base class of runtimes, on the side of prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from ....search_space.graph import OpGraph
from ..kernels import Kernels

STANDARD_PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "amp", "int8")
"""Precisions that a target of the runtimes in this package may name; "amp" is torch's autocast to fp16."""


class Runtime(ABC):
    """A library that runs networks: the kernels it makes of an operator graph, and what a target may say of it.

    Another runtime takes two files. This side says what is predicted, `evaluators/device/runtimes/` has a file of the
    same name that says how a network is timed; neither imports the other, the runtime's name joins them. Without the
    second file latency can be predicted from a profile, but not measured on this machine.

    A runtime that merges nothing is complete with this:

        from lownas.predictors.latency.kernels import PLAIN, Fuser, class_of
        from lownas.predictors.latency.runtimes import Runtime, register_runtime

        class Toy(Runtime):
            name = "toy"
            library = "toy-runtime"
            precisions = ("fp32",)

            def fuse(self, graph, fusion, block, layout):
                fuser = Fuser(graph)
                for row, op in enumerate(fuser.ops):
                    fuser.emit(row, class_of(op))
                return fuser.kernels(), PLAIN

        register_runtime(Toy())

    After that "box/toy/fp32/b1/t1" names a target, which can be calibrated and predicted. In this package, the last
    line is an entry in `runtimes/__init__.py`. Rules worth following:

    - Kernels have the classes in `kernels.KERNEL_CLASSES`. One class should hold what runs at a similar efficiency:
      each class has its own coefficients in the latency model.
    - Merge a pointwise operator into the kernel that computes its input where the runtime does (`Fuser.merge`), and
      emit a kernel of its own for every reordering that the runtime adds.
    - Multiply-accumulates and weights of the graph are kept, whatever is merged. The contract test in
      `tests/predictors/latency/runtimes/` checks that, and the next point.
    - Nothing is merged across the end of a unit (`search_space.units`), so that a network's kernels are those of its
      units: that is what makes bulk prediction fast. Only the layout of the tensor is handed on.
    - If the runtime can time single kernels, the measuring side names them "ROW:ROLE" as in `Kernels.keys`.

    Attributes:
        name: as in a target's name: lower-case letters, digits and "-".
        library: the installed package whose version a profile belongs to, on this machine.
        precisions: those a target of this runtime may have.
    """

    name: str
    library: str
    precisions: tuple[str, ...] = STANDARD_PRECISIONS

    def fusion(self, precision: str) -> str:
        """The name of the fusion rules that apply at `precision`; override it where they differ between precisions.

        Profiles keep this name, so that it must not change its meaning. By default a runtime has one set of rules, of
        its own name.
        """
        return self.name

    @property
    def fusions(self) -> tuple[str, ...]:
        """The names of all fusion rules of this runtime."""
        return tuple(dict.fromkeys((self.name, *map(self.fusion, self.precisions))))

    def block_sizes(self, fusion: str) -> tuple[int, ...]:
        """Numbers of channels that a blocked tensor layout may have, depending on the device; (0,) without one.

        Calibration takes the one whose kernels have the names that were measured (`fitting.samples.block_size`).
        """
        return (0,)

    def profiled_nodes(self, fusion: str) -> Mapping[str, int]:
        """Nodes of the runtime's own graph that a kernel of a class is, where that is more than one.

        A profiler adds its own time to each.
        """
        return {}

    @abstractmethod
    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        """The kernels that are executed for `graph`, and the layout of its output tensor.

        Args:
            graph: a whole network or one unit of it.
            fusion: one of `fusions`.
            block: channels of the blocked layout on the device, one of `block_sizes`; 0 for none.
            layout: of the tensor that `graph` reads: `kernels.PLAIN`, or what `fuse` gave for the unit before it.
        """
