"""What the nodes of a cluster have installed is compared before they are given work, and said in one line."""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lownas.search.training import node_versions
from lownas.search.training.node_versions import NEEDED, check_nodes, compare
from lownas.search.training.ray_cluster import ROOT, copy_package

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "numpy": "2.4.6", "pillow": "13.0.0", "lownas": "a"}


def test_what_does_not_fit_is_named_with_node_and_both_versions() -> None:
    old = {**HERE, "torch": "2.9.1+cu128", "pillow": None}
    grave, harmless = compare(HERE, {"10.0.0.7": old, "10.0.0.8": HERE, "10.0.0.9": {**old, "pillow": "13.0.0"}})
    assert grave == [
        "torch is 2.9.1+cu128 on 10.0.0.7, 10.0.0.9, but 2.13.0+cpu here",
        "pillow is missing on 10.0.0.7",
    ]
    assert harmless == []


@pytest.mark.parametrize(
    ("name", "version", "refused", "said"),
    [
        ("torch", "2.13.0+cu128", False, False),  # the same release for another device
        ("torch", "2.13.1", False, True),
        ("torch", "2.12.0", True, True),
        ("python", "3.11.9", False, True),
        ("python", "3.12.7", True, True),
        ("ray", "2.60.1", True, True),
        ("numpy", "2.1.0", False, True),
        ("numpy", "1.26.4", True, True),
        ("pillow", "11.0.0", False, True),
        ("lownas", "b", True, True),
    ],
)
def test_what_is_refused_and_what_is_a_warning(name: str, version: str, refused: bool, said: bool) -> None:
    grave, harmless = compare(HERE, {"10.0.0.7": {**HERE, name: version}})
    assert bool(grave) == refused and bool(grave or harmless) == said


def test_many_nodes_stay_one_line() -> None:
    nodes = {f"10.0.0.{number}": {**HERE, "torch": "2.9.1"} for number in range(9)}
    (phrase,) = compare(HERE, nodes)[0]
    assert phrase == "torch is 2.9.1 on 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, and 5 more, but 2.13.0+cpu here"


class _Future:
    def __init__(self, node: str, gives: Any) -> None:
        self.node, self.gives = node, gives


class FakeRay:
    """The part of Ray that is used: three nodes, of which some answer."""

    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))

    def __init__(self, answers: dict[str, Any], lost: str | None = None) -> None:
        self.answers, self.lost, self.cancelled = answers, lost, 0
        self.looks = 0
        affinity = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=affinity)

    def nodes(self) -> list[dict[str, Any]]:
        self.looks += 1
        lost = self.lost if self.looks > 1 else None
        return [
            {"NodeID": name, "Alive": name != lost, "NodeManagerAddress": f"10.0.0.{number}"}
            for number, name in enumerate(self.answers)
        ]

    def remote(self, **_: Any) -> Any:
        def options(scheduling_strategy: str) -> Any:
            return SimpleNamespace(remote=lambda *_: _Future(scheduling_strategy, self.answers[scheduling_strategy]))

        return lambda function: SimpleNamespace(options=options)

    def wait(self, futures: list[_Future], **_: Any) -> tuple[list[_Future], list[_Future]]:
        return [one for one in futures if one.gives != "late"], [one for one in futures if one.gives == "late"]

    def get(self, future: _Future) -> Any:
        if isinstance(future.gives, Exception):
            raise future.gives
        return future.gives

    def cancel(self, future: _Future, force: bool) -> None:
        self.cancelled += 1


@pytest.fixture
def same() -> dict[str, Any]:
    return dict(node_versions._looker()(node_versions._modules(), node_versions.PARTS, str(ROOT)))


def test_all_alike_is_one_line(same) -> None:
    alike, harmless = check_nodes(FakeRay({"a": same, "b": same, "c": same}), ROOT)
    assert alike.startswith("3 nodes with python 3.") and "lownas 0." in alike and harmless == ""
    alike, harmless = check_nodes(FakeRay({"a": same, "b": {**same, "kornia": "0.1"}}), ROOT)
    assert harmless.startswith("kornia is 0.1 on 10.0.0.1, but ")


def test_nodes_that_do_not_fit_or_do_not_answer_are_refused(same) -> None:
    with pytest.raises(
        ValueError, match=r"^what is installed on its nodes does not fit: torch is missing on 10\.0\.0\.1"
    ):
        check_nodes(FakeRay({"a": same, "b": {**same, "torch": None}}), ROOT)
    ray = FakeRay({"a": same, "b": "late"})
    with pytest.raises(
        ValueError, match=r"^not all nodes can be given work: 10\.0\.0\.1 does not answer within 120 s$"
    ):
        check_nodes(ray, ROOT)
    assert ray.cancelled == 1
    broken = FakeRay.exceptions.RayError("no space left\non device")
    with pytest.raises(ValueError, match=r"given work: 10\.0\.0\.1: RayError: no space left on device$"):
        check_nodes(FakeRay({"a": same, "b": broken}), ROOT)


def test_a_node_that_is_lost_while_it_is_asked_is_no_reason(same) -> None:
    check_nodes(FakeRay({"a": same, "b": "late"}, lost="b"), ROOT)


def test_the_copy_that_travels_is_this_package(same, tmp_path: Path) -> None:
    look = node_versions._looker()
    copy = copy_package(tmp_path)
    assert look({}, node_versions.PARTS, str(copy))["lownas"] == same["lownas"]
    (copy / "search" / "loop.py").write_text("")
    assert look({}, node_versions.PARTS, str(copy))["lownas"] not in (same["lownas"], None)
    shutil.rmtree(copy)
    assert look({"nothing-of-this-name": "nothing_of_this_name"}, (), str(copy)) == {
        "python": same["python"],
        "nothing-of-this-name": None,
        "lownas": None,
    }


def test_what_workers_need_is_what_this_package_needs() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(NEEDED) <= {line.partition(">")[0] for line in setup["options"]["install_requires"].split()}
