"""Elements on a made-up device, whose costs are known: what is measured, kept, found and left out."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lownas.predictors import Target
from lownas.search.elements import api, measuring
from lownas.search.elements.api import elements
from lownas.search.elements.catalog import Element, EmptyFrame
from lownas.search.elements.catalog import elements as catalog
from lownas.search.elements.costs import ElementCost, measured_costs, read_csv, write_csv
from lownas.search.elements.findings import Costs, compared, crossing, findings
from lownas.search.elements.looks_file import ElementLook, LooksFile
from lownas.search.elements.measuring import settings
from lownas.search.elements.smaller_space import smaller_space
from lownas.search_space import PRESETS, OpGraph, SearchSpace, op_graph_from_onnx, write_onnx

NS_PER_MAC = 0.02


class MadeUp:
    """A device on which a MAC takes 6 times as long in depthwise convolutions, in 2 groups 2 times, else 1.5 times."""

    def __init__(
        self,
        *,
        noise: float = 0.005,
        breaks_after: int | None = None,
        refuses: str = "",
        fails_at: set[int] = frozenset(),
    ) -> None:
        self.rng = np.random.default_rng(0)
        self.fails_at = fails_at or set()
        self.noise, self.breaks_after, self.refuses = noise, breaks_after, refuses
        self.looks = 0

    def ms(self, graph: OpGraph) -> float:
        total = 0.05
        for op in graph.table:
            kind, cin, groups, macs = graph_fields(graph, op)
            rate = NS_PER_MAC
            if kind == "conv" and groups == cin and groups > 1:
                rate *= 6
            elif kind == "conv" and groups == 2:
                rate *= 2
            elif kind == "conv" and groups > 1:
                rate *= 1.5
            total += macs * rate / 1e6
        return total

    @contextmanager
    def meter(self, target: Target):
        def measure(network, target, **limits):
            if self.looks == self.breaks_after:
                raise OSError("the box is gone")
            self.looks += 1
            if self.looks - 1 in self.fails_at:
                raise RuntimeError("the disk is full")
            graph = op_graph_from_onnx(network) if isinstance(network, Path) else network
            graph = graph if isinstance(graph, OpGraph) else api.op_graph(graph)
            if self.refuses and self.refuses in graph.kinds:
                raise ValueError(f"no kernel for {self.refuses}")
            ms = self.ms(graph) * (target.batch or 1) * float(np.exp(self.rng.normal(0, self.noise)))
            return SimpleNamespace(undisturbed_ms=ms, median_ms=1.02 * ms)

        @contextmanager
        def looking(profiles=None, rest_s=0.0):
            yield SimpleNamespace(known_ms=None, watch=lambda: None)

        yield SimpleNamespace(target=target, measure=measure, measuring=looking)


def graph_fields(graph: OpGraph, op) -> tuple[str, int, int, int]:
    from lownas.search_space.graph import COLUMN, KINDS

    return (KINDS[op[COLUMN["kind"]]], *(int(op[COLUMN[name]]) for name in ("cin", "groups", "macs")))


@pytest.fixture
def on(monkeypatch):
    """Makes a made-up device the one at hand."""

    def use(device: MadeUp) -> MadeUp:
        for module in (api, measuring):
            monkeypatch.setattr(module, "open_meter", device.meter)
        return device

    return use


def quick(folder: Path, **more):
    lines: list[str] = []
    found = elements("cpu", out=folder, quick=True, time_limit="1s", profiles=folder / "none", say=lines.append, **more)
    return found, lines


def test_what_is_true_of_the_device_is_found(tmp_path, on) -> None:
    on(MadeUp())
    found, _ = quick(tmp_path / "out")
    by_name = {each.name: each for each in found.slowdowns[str(found.target)]}
    assert by_name["depthwise 3x3 over dense 3x3, per MAC"].ratio == pytest.approx(6, rel=0.1)
    assert by_name["3x3 in 4 groups over dense 3x3, per MAC"].ratio == pytest.approx(1.5, rel=0.05)
    assert by_name["1x1 over dense 3x3, per MAC"].differs == 0
    verdicts = {each.guideline: each.verdict for each in found.findings}
    assert verdicts["A depthwise convolution takes more time per MAC than a dense one."] == "holds"
    assert verdicts["Two groups save time (CPUBone)."] == "equal"
    assert verdicts["At equal MACs, fewer pixels with more channels take less time."] == "equal"
    assert verdicts["2x2 kernels save time (CPUBone)."] == "holds"


def test_the_files_are_complete(tmp_path, on) -> None:
    on(MadeUp())
    found, _ = quick(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "elements.csv").open()))
    assert len(rows) == len(catalog(quick=True)) and all(float(row["ms"]) > 0 for row in rows)
    dense = next(r for r in rows if r["element"] == "dense 3x3" and r["channels"] == "128" and r["pixels"] == "14")
    assert float(dense["ns_per_mac"]) == pytest.approx(NS_PER_MAC, rel=0.05)
    networks = list(csv.DictReader((tmp_path / "out" / "networks.csv").open()))
    assert {row["network"] for row in networks} == set(api.QUICK_NETWORKS)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") >= 5 and "Depthwise" not in page and "http-equiv" not in page
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["elements"] == len(rows)
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} >= {"per-mac.png", "fusion.png"}
    assert all(path.exists() for path in found.files)


def test_a_run_that_broke_off_goes_on(tmp_path, on) -> None:
    on(MadeUp(breaks_after=100))
    with pytest.raises(OSError, match="the box is gone"):
        quick(tmp_path / "out")
    kept = (tmp_path / "out" / "looks.jsonl").read_text()
    assert kept.count("\n") == 101
    with (tmp_path / "out" / "looks.jsonl").open("a") as out:
        out.write('{"setting": "cut o')
    whole = on(MadeUp())
    found, _ = quick(tmp_path / "out")
    assert (tmp_path / "out" / "looks.jsonl").read_text().startswith(kept)
    chains = len(catalog(quick=True)) + 14 + len(api.QUICK_NETWORKS)
    assert whole.looks >= 3 * chains - 100 and all(cost.looks >= 3 for cost in found.costs)


def test_looks_of_another_machine_are_refused(tmp_path, on, monkeypatch) -> None:
    on(MadeUp())
    quick(tmp_path / "out")
    monkeypatch.setattr(Target, "fingerprint", lambda self: {"cpu": "another"})
    with pytest.raises(ValueError, match=r"has looks of machine .* name another --out"):
        quick(tmp_path / "out")
    for broken in ("no JSON\n", "[]\n", "1\n", ""):
        (tmp_path / "out" / "looks.jsonl").write_text(broken)
        with pytest.raises(ValueError, match="damaged"):
            quick(tmp_path / "out")


def test_an_element_that_does_not_run_is_said_and_left_empty(tmp_path, on) -> None:
    on(MadeUp(refuses="layer_norm"))
    found, lines = quick(tmp_path / "out")
    failed = [cost for cost in found.costs if cost.failed]
    assert {cost.element.name for cost in failed} == {"1x1 and layer norm"}
    networks = api.QUICK_NETWORKS  # their heads have one
    assert len(lines) == len(failed) + len(networks) and all("no kernel for layer_norm" in line for line in lines)
    assert [each.ms for each in found.networks] == [None] * len(networks)
    rows = list(csv.DictReader((tmp_path / "out" / "elements.csv").open()))
    assert {row["ms"] for row in rows if row["failed"]} == {""}


def test_what_may_pass_is_tried_again(tmp_path, on) -> None:
    device = on(MadeUp(fails_at={20, 40, 41}))
    _, lines = quick(tmp_path / "out")
    assert len(lines) == 3 and all("the disk is full" in line for line in lines)
    assert "the disk is full" not in (tmp_path / "out" / "looks.jsonl").read_text()
    again, lines = quick(tmp_path / "out")
    assert not lines and not [cost for cost in again.costs if cost.failed] and again.costs
    device.fails_at = set(range(device.looks, device.looks + 3))
    with pytest.raises(OSError, match="3 measurements in a row failed: the disk is full"):
        quick(tmp_path / "other")


def test_elements_whose_frame_fails_say_so(tmp_path, on) -> None:
    on(MadeUp())
    found, _ = quick(tmp_path / "out")
    place = next(cost.element.place for cost in found.costs)
    looks = LooksFile(tmp_path / "out" / "looks.jsonl", found_about(tmp_path / "out")).looks
    frame = EmptyFrame(*place).key
    bad = [ElementLook(look.setting, frame, 0, failed="no room") if look.key == frame else look for look in looks]
    costs = measured_costs(settings(found.target, quick=True)[:1], bad, {})
    reasons = {cost.failed for cost in costs if cost.element.place == place}
    assert reasons == {"its frame gave no time: no room"}
    assert not any(cost.failed for cost in costs if cost.element.place != place)


def found_about(folder: Path) -> dict:
    about = json.loads((folder / "looks.jsonl").read_text().splitlines()[0])
    return {name: value for name, value in about.items() if name not in ("format", "lownas")}


def test_files_of_one_name_are_told_apart(tmp_path, on) -> None:
    on(MadeUp())
    files = []
    for number, preset in enumerate(("lowformer_b0", "lowformer_b1")):
        files.append(tmp_path / str(number) / "mine.onnx")
        files[-1].parent.mkdir()
        write_onnx(PRESETS[preset], files[-1])
    with pytest.raises(ValueError, match="another network is called 'mine' already"):
        quick(tmp_path / "out", onnx=files)
    first, second = (quick(tmp_path / "out", onnx=[file])[0].networks[-1] for file in files)
    assert first.name == second.name == "mine" and second.ms > 1.2 * first.ms
    with pytest.raises(ValueError, match=r"rtx3090.* cannot be measured here; `lownas predict --onnx`"):
        elements("rtx3090", out=tmp_path / "other", quick=True, onnx=files[:1])


def test_a_target_that_is_not_at_hand_is_predicted_without_findings(tmp_path) -> None:
    found = elements("rtx3090", out=tmp_path / "out", quick=True)
    assert not found.measured and not found.findings and not found.networks
    assert {cost.source for cost in found.costs} == {"predicted"}
    assert "no findings are drawn" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(ValueError, match="nothing is left out by predictions"):
        elements("rtx3090", out=tmp_path / "out", quick=True, emit_space=tmp_path / "space.yaml")
    with pytest.raises(ValueError, match="can be neither measured here nor predicted"):
        elements("nobox/tensorrt/fp16/b1/t1", out=tmp_path / "other", quick=True)
    assert not (tmp_path / "space.yaml").exists() and not (tmp_path / "other").exists()


def test_the_smaller_space_lacks_what_saves_no_time(tmp_path, on) -> None:
    on(MadeUp())
    found, _ = quick(tmp_path / "out", emit_space=tmp_path / "mine.yaml")
    left_out = {(each.parameter, each.value) for each in found.left_out}
    assert ("groups", 2) in left_out  # as slow as dense ones
    assert ("kernel", 2) not in left_out  # 4/9 of the time
    space = SearchSpace.load(tmp_path / "mine.yaml")
    assert "groups = 2: 1 takes 1.00 times as long as 2 where" in (tmp_path / "mine.yaml").read_text()
    assert space.name == "default-smaller" and space.choices.groups == (1,) and space.choices.kernel == (2, 3)
    assert (tmp_path / "mine.yaml").read_text().startswith("# Without what is dominated on cpu/")


def attention(name: str, place: tuple[int, int], ms: float, macs: int, error: float = 0.01):
    element = SimpleNamespace(topic="attention", name=f"Lowtention, {name}", place=place)
    return SimpleNamespace(element=element, ms=ms, error=error, macs=macs)


def upsamplings(separable_ms: float, error: float = 0.01):
    """Three ways to go back to the map, at the same two places; a mix of the outer two as large takes 1.1 ms."""
    times = (("nearest", 1.0, 10), ("separable", separable_ms, 11), ("transposed", 2.0, 20))
    return [
        attention(f"stride 2, 0.5, {name}", place, ms, macs, error)
        for place in ((128, 14), (256, 7))
        for name, ms, macs in times
    ]


@pytest.mark.parametrize(
    ("costs", "left_out"),
    [
        (upsamplings(1.5), {"separable"}),
        (upsamplings(1.12), set()),  # equal, as far as 3 % go
        (upsamplings(1.4, error=0.1), set()),  # within the noise
        (upsamplings(0.9), {"nearest"}),  # more capable, and faster
        ([*upsamplings(1.5)[:5], attention("stride 2, 0.5, transposed", (256, 7), 3.0, 20)], {"separable"}),
        ([*upsamplings(1.5)[:4], *upsamplings(1.05)[4:]], set()),  # at one place only
        (upsamplings(1.5)[:2], set()),  # nothing is known of the third
    ],
)
def test_a_choice_slower_than_a_mix_of_two_others_is_left_out(costs, left_out) -> None:
    content, out = smaller_space(SearchSpace.load("default"), costs)
    assert {each.value for each in out} == left_out
    assert set(content["upsampling"]) == {"transposed", "separable", "nearest"} - left_out


def test_what_was_written_is_read_again(tmp_path) -> None:
    places = [each for each in catalog() if each.topic in ("fusion", "attention")][:40]
    target = Target.parse("cpu")
    written = [ElementCost(target, each, 0.1 * (n + 1), 0.01, 3, "measured") for n, each in enumerate(places)]
    written.append(ElementCost(target, places[0], None, float("nan"), 2, "measured", "too short"))
    write_csv(written, tmp_path / "elements.csv")
    read = read_csv(tmp_path / "elements.csv")
    assert [(each.setting, each.element, each.ms, each.looks, each.failed) for each in read] == [
        (each.setting, each.element, each.ms and pytest.approx(each.ms), each.looks, each.failed) for each in written
    ]
    (tmp_path / "elements.csv").write_text("setting,topic\ncpu,nothing\n")
    with pytest.raises(ValueError, match=r"no elements\.csv of this version"):
        read_csv(tmp_path / "elements.csv")


def test_only_places_that_a_stage_can_have_count() -> None:
    def strides(place, slow_ms):
        fast = [attention(f"stride {stride}, 0.5, transposed", place, ms, 10) for stride, ms in ((2, 1.0), (1, 3.0))]
        return [*fast, attention("stride 4, 0.5, transposed", place, slow_ms, 8)]

    slow, saves_in_narrow_ones = strides((256, 14), 1.2), strides((48, 14), 0.5)  # stage 3 has 96 to 288 channels
    _, out = smaller_space(SearchSpace.load("default"), [*slow, *saves_in_narrow_ones])
    assert [(each.parameter, each.value) for each in out] == [("s3.stride", 4)]
    _, out = smaller_space(SearchSpace.load("default"), [*slow, *strides((128, 14), 0.5)])
    assert not out


def test_where_fused_becomes_slower_is_between_the_places() -> None:
    def cost(name: str, width: int, ms: float):
        element = Element("fusion", name, width, 14)
        return SimpleNamespace(element=element, ms=ms, error=0.01, macs=1)

    costs = [cost("unfused MBConv", width, 1.0) for width in (64, 128, 256)]
    costs += [cost("fused MBConv", width, ms) for width, ms in ((64, 0.5), (128, 0.8), (256, 1.25))]
    at, rows = crossing(Costs(costs), 14)
    assert at == pytest.approx((128 * 256) ** 0.5) and [row[0] for row in rows] == [64, 128, 256]
    assert crossing(Costs(costs[:5]), 14)[0] is None
    only_wide = [*costs[:3], *(cost("fused MBConv", width, ms) for width, ms in ((64, 1.5), (128, 0.7), (256, 0.7)))]
    assert crossing(Costs(only_wide), 14)[0] is None
    said = next(each.text for each in findings(only_wide, []) if each.guideline.startswith("Fused MBConv"))
    assert said == "Fused MBConv is the faster one at 128, 256 channels at 14 pixels."
    never = [*costs[:3], *(cost("fused MBConv", width, ms) for width, ms in ((64, 1.5), (128, 1.7), (256, 2.04)))]
    found = next(each for each in findings(never, []) if each.guideline.startswith("Fused MBConv"))
    assert found.verdict == "does not hold"
    assert found.text.endswith("nowhere the faster one: it takes 1.5 to 2.0 times as long at 64 to 256 channels.")


def test_what_lies_within_the_noise_is_equal() -> None:
    def at(ratios: list[float], error: float):
        return compared("a over b", {str(i): ((r, error), (1.0, error)) for i, r in enumerate(ratios)})

    assert at([1.06, 1.05, 1.07], 0.005).differs == 1
    assert at([0.9], 0.01).differs == -1
    assert at([1.06, 1.05, 1.07], 0.05).differs == 0
    assert at([1.3, 0.8, 1.1], 0.005).differs == 0  # the places say different things
    assert at([1.01, 1.012, 1.011], 0.0005).differs == 0  # sure, and of no use
    assert compared("a over b", {"x": (None, (1.0, 0.1))}) is None


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(tmp_path, on, capsys) -> None:
    from lownas.nas import main

    on(MadeUp())
    out = ["--out", str(tmp_path / "out"), "--profiles", str(tmp_path / "none")]
    assert main(["elements", "--quick", "--time-limit", "1s", *out]) == 0
    shown = capsys.readouterr()
    assert "Two groups save time" in shown.out and "report.html" in shown.out
    assert main(["elements", "--target", "rtx3090", "--quick", "--json", "--out", str(tmp_path / "other")]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    for wrong, said in (
        (["--target", "rtx3091"], "unknown target 'rtx3091'"),
        (["--time-limit", "soon"], "time_limit"),
        (["--onnx", str(tmp_path / "no.onnx")], "no file at"),
        (["--space", "mine.yaml", "--emit-space", str(tmp_path / "x.yaml")], "neither a file nor one of"),
    ):
        assert main(["elements", *out, *wrong]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("lownas: error:") and said in error
