"""A runtime from outside the package, and the registry as it was before each test that adds one."""

from collections.abc import Iterator

import pytest

from lownas.predictors.latency.kernels import PLAIN, Fuser, class_of
from lownas.predictors.latency.runtimes import RUNTIMES, Runtime


class Toy(Runtime):
    """Merges nothing, as in the guide of `Runtime`."""

    name = "toy"
    library = "toy-runtime"
    precisions = ("fp32",)

    def fuse(self, graph, fusion, block, layout):
        fuser = Fuser(graph)
        for row, op in enumerate(fuser.ops):
            fuser.emit(row, class_of(op))
        return fuser.kernels(), PLAIN


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def registry() -> Iterator[dict[str, Runtime]]:
    """The registered runtimes; what a test adds is taken out again."""
    before = dict(RUNTIMES)
    yield RUNTIMES
    RUNTIMES.clear()
    RUNTIMES.update(before)
