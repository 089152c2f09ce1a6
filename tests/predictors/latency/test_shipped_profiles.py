"""The shipped profiles: they load alone, say where they come from, and predict sanely and fast."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from lownas.predictors import LatencyPredictor
from lownas.predictors.latency.target import Target, shipped_profiles
from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.graph import GraphBuilder

THROUGHPUT = ("rtx3090:throughput", "rtx4090:throughput", "rtx5090:throughput")
COMPILED = ("rtx4090:compile", "rtx5090:compile", "rtxpro6000:compile")
TIMM = (*THROUGHPUT, "rtxpro6000:throughput", *COMPILED, "i7-12700h", "i9-10940x")
TARGETS = ("rtx3090", *TIMM)


@pytest.fixture(scope="module")
def predictor() -> LatencyPredictor:
    return LatencyPredictor.load("rtx3090")


@pytest.mark.parametrize("target", TARGETS)
def test_the_shipped_profile_is_small_and_says_where_it_comes_from(target: str) -> None:
    path = shipped_profiles() / Target.parse(target).file_name
    assert path.stat().st_size < 2_000_000
    provenance = json.loads(path.read_text())["provenance"]
    assert "published" in provenance["source"] and "no LowFormer was measured" in provenance["source"]
    assert provenance["lowformer_measured"] is False
    assert provenance["samples"] >= 47
    assert 0 < provenance["held_out_error"] < 0.5 * provenance["macs_only_error"]
    assert "families" in provenance["held_out"]
    assert "conv_transpose" in provenance["not_covered"]
    interval = provenance["held_out_interval"]
    assert 0.8 < interval["covered"] < 1 and interval["median_half_width"] < 0.5


@pytest.mark.parametrize("target", TIMM)
def test_intervals_are_those_of_whole_kinds_left_out(target: str) -> None:
    provenance = LatencyPredictor.load(target).provenance
    kinds = provenance["held_out_kinds"]
    assert 0.85 <= kinds["interval"]["covered"] <= 0.96
    assert provenance["held_out_median_error"] / 1.1 <= kinds["median_error"] < 0.17


def test_what_is_compiled_is_faster() -> None:
    configs = [PRESETS["lowformer_b1"], PRESETS["lowformer_e3"]]
    for card in ("rtx4090", "rtx5090", "rtxpro6000"):
        eager, compiled = (
            LatencyPredictor.load(f"{card}:{how}").latency_ms(configs) for how in ("throughput", "compile")
        )
        assert (compiled < eager).all()


def test_every_shipped_profile_is_tested_here() -> None:
    names = {path.name for path in shipped_profiles().glob("*.json")}
    assert names == {Target.parse(target).file_name for target in TARGETS}


def test_newer_cards_are_faster_and_cpus_slower() -> None:
    configs = [PRESETS["lowformer_b1"], PRESETS["lowformer_e3"]]
    ampere, ada, blackwell = (LatencyPredictor.load(target).latency_ms(configs) for target in THROUGHPUT)
    assert (ada < ampere).all() and (blackwell < ada).all()
    gpu, i7, i9 = (
        LatencyPredictor.load(target).latency_ms(configs) for target in ("rtx3090", "i7-12700h", "i9-10940x")
    )
    assert (gpu < 0.5 * i7).all() and (gpu < 0.5 * i9).all()


@pytest.mark.parametrize("target", TARGETS)
def test_bulk_and_single_predictions_agree(target: str) -> None:
    predictor = LatencyPredictor.load(target)
    configs = list(PRESETS.values())
    single = [entry.latency_ms for entry in predictor.predict(configs)]
    graphs = [entry.latency_ms for entry in predictor.predict([op_graph(config) for config in configs])]
    np.testing.assert_allclose(predictor.latency_ms(configs), single)
    np.testing.assert_allclose(graphs, single, rtol=1e-6)


def test_the_batch_1_profile_names_sources_families_and_what_it_refers_to(predictor: LatencyPredictor) -> None:
    provenance = predictor.provenance
    assert sum(provenance["measurements"].values()) == provenance["samples"] == 47
    assert len(provenance["held_out_error_by_family"]) == 5
    assert "trtexec" in provenance["refers_to"]
    assert {"group_norm", "matmul", "softmax"} <= set(provenance["not_covered"])


def test_predicting_needs_neither_torch_nor_ray_nor_optuna() -> None:
    code = (
        "import sys; from lownas.predictors import LatencyPredictor; from lownas.search_space import PRESETS\n"
        "LatencyPredictor.load('rtx3090').predict([PRESETS['lowformer_b3']])\n"
        "print([name for name in ('torch', 'ray', 'optuna') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "order",
    [
        ["lowformer_b0", "lowformer_b1", "lowformer_b15", "lowformer_b2", "lowformer_b3"],
        ["lowformer_e1", "lowformer_e2", "lowformer_e3", "lowformer_b3"],
        ["cpubone_nano", "cpubone_t0", "cpubone_s0", "cpubone_b3"],
    ],
)
def test_larger_models_of_a_series_take_longer(target: str, order: list[str]) -> None:
    times = LatencyPredictor.load(target).latency_ms([PRESETS[name] for name in order])
    assert (np.diff(times) > 0).all()


def test_e3_over_e2_is_near_the_published_ratio(predictor: LatencyPredictor) -> None:
    e2, e3 = predictor.latency_ms([PRESETS["lowformer_e2"], PRESETS["lowformer_e3"]])
    assert 1.8 < e3 / e2 < 3.0  # 2.4 on a TITAN RTX


def test_presets_are_within_what_such_a_card_can_do(predictor: LatencyPredictor) -> None:
    for name, config in PRESETS.items():
        (time_ms,) = predictor.latency_ms([config])
        # Never faster than the tensor cores or the memory allow, never slower than a TITAN RTX took for E3.
        weights = 2 * op_graph(config).params / 936e6
        assert max(op_graph(config).macs / 71e9, weights) < time_ms < 3.6, name


def test_the_interval_covers_the_point_and_is_wider_than_the_anchors_alone(predictor: LatencyPredictor) -> None:
    for entry in predictor.predict(PRESETS.values()):
        assert entry.low_ms < entry.latency_ms < entry.high_ms
        half_width = (entry.high_ms - entry.low_ms) / 2 / entry.latency_ms
        assert predictor.provenance["held_out_interval"]["median_half_width"] < half_width < 1.0
        assert "no LowFormer was measured" in entry.source
    with_attention = predictor.predict([PRESETS["lowformer_b1"]])[0].outside
    assert {"conv_transpose", "group_norm"} <= set(with_attention)
    assert "conv_transpose" not in predictor.predict([PRESETS["lowformer_e1"]])[0].outside


def test_the_interval_of_a_config_is_the_one_that_a_search_uses(predictor: LatencyPredictor) -> None:
    config = PRESETS["lowformer_b15"]
    (entry,) = predictor.predict([config], coverage=0.8)
    np.testing.assert_allclose(predictor.quantile_ms([config], 0.9), entry.high_ms, rtol=1e-6)
    np.testing.assert_allclose(predictor.probability_within(entry.high_ms, [config]), 0.9, atol=1e-3)


def test_an_operator_that_nothing_allows_for_widens_the_interval(predictor: LatencyPredictor) -> None:
    build = GraphBuilder()
    row, shape = build.conv(-1, (3, 64, 64), 32, 3, stride=2, norm=True)
    plain = build.build()
    build.pointwise("other", [row], shape)
    known, foreign = predictor.predict([plain, build.build()])
    assert "other" in foreign.outside
    assert foreign.high_ms / foreign.latency_ms > 1.5 * known.high_ms / known.latency_ms


def test_bulk_prediction_reuses_what_units_cost(predictor: LatencyPredictor) -> None:
    space = SearchSpace.load("default")
    rng = np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(300)]
    bulk = predictor.latency_ms(configs)
    single = [predictor.predict([op_graph(config)])[0].latency_ms for config in configs[:20]]
    np.testing.assert_allclose(bulk[:20], single, rtol=1e-9)

    def cpu_seconds(repeats: int, count: int, bulk: bool) -> float:
        start = time.process_time()
        for _ in range(repeats):
            if bulk:
                predictor.latency_ms(configs[:count])
            else:
                predictor.predict([op_graph(config) for config in configs[:count]])
        return (time.process_time() - start) / (repeats * count)

    assert cpu_seconds(5, 300, bulk=True) < 0.2 * cpu_seconds(1, 50, bulk=False)
