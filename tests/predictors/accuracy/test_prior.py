"""The accuracy prior against the published numbers it is fitted on."""

import subprocess
import sys
import time

import numpy as np
import pytest

from lownas.predictors.accuracy.prior import MACS_TOLERANCE, AccuracyPrior, macs_and_shape
from lownas.predictors.costs import total_macs
from lownas.search_space.presets import PRESETS, PUBLISHED


def test_prior_is_close_to_published_and_says_its_error() -> None:
    prior = AccuracyPrior()
    assert 0.38 < prior.baseline_error < 0.48  # MACs and resolution alone: the reference says about 0.43
    assert prior.worst_baseline_error > 1.5
    assert prior.leave_one_out_error < 0.35
    assert prior.worst_leave_one_out_error < 1.2
    for name, model in PUBLISHED.items():
        for resolution, published in model.top1.items():
            estimate = prior.imagenet_top1([model.config.replace(resolution=resolution)])[0]
            assert abs(estimate - published) < 0.7, (name, resolution)


def test_error_is_that_of_a_model_left_out() -> None:
    nano = PUBLISHED["cpubone_nano"]
    prior = AccuracyPrior({name: model for name, model in PUBLISHED.items() if name != "cpubone_nano"})
    macs, blocks, shares = macs_and_shape([nano.config])
    estimate = prior.top1_from_costs(macs, np.array([224.0]), blocks, shares)[0]
    assert abs(estimate - nano.top1[224]) <= AccuracyPrior().worst_leave_one_out_error + 1e-9


def test_all_published_models_count() -> None:
    prior = AccuracyPrior()
    assert prior.models == len(PUBLISHED)
    assert prior.points == sum(len(model.top1) for model in PUBLISHED.values())


def test_larger_is_better_and_small_images_earn_nothing() -> None:
    prior = AccuracyPrior()
    b1 = PRESETS["lowformer_b1"]
    small, base, large = (b1.model_copy(update={"resolution": r}) for r in (160, 224, 288))
    estimates = prior.imagenet_top1([small, base, large])
    assert np.all(np.diff(estimates) > 0.3)
    # Below 224 pixels only the MACs count.
    same = prior.top1_from_costs(np.full(2, 1e9), np.array([128.0, 224.0]), np.full(2, 14.0), np.ones(2))
    assert same[0] == same[1]


def test_macs_beyond_the_largest_published_model_earn_nothing() -> None:
    prior = AccuracyPrior()
    macs = prior.macs_range[1] * np.array([0.5, 1.0, 2.0, 4.0])
    top1 = prior.top1_from_costs(macs, np.full(4, 224.0), np.full(4, 14.0), np.ones(4))
    assert np.diff(np.log(100 - top1)) == pytest.approx([prior.coefficients[1] * np.log(2), 0.0, 0.0])
    b3 = PRESETS["lowformer_b3"]
    assert prior.beyond([b3, b3.replace(resolution=288)]).tolist() == [False, False]
    deeper = b3.model_copy(update={"stages": (*b3.stages[:3], b3.stages[3].model_copy(update={"depth": 9}))})
    assert prior.beyond([deeper]).tolist() == [True]


def test_attention_is_worth_something_at_equal_macs() -> None:
    prior = AccuracyPrior()
    without, with_ = prior.top1_from_costs(np.full(2, 2e9), np.full(2, 224.0), np.full(2, 16.0), np.array([0.0, 1.0]))
    assert 0.2 < with_ - without < 1.2  # E1 and E2 fall that far behind the B models
    configs = [PRESETS[name] for name in ("lowformer_b1", "lowformer_e1", "lowformer_e3")]
    assert macs_and_shape(configs)[2].tolist() == [1.0, 0.0, 1.0]


def test_no_shape_earns_more_than_the_published_ones() -> None:
    prior = AccuracyPrior()
    blocks = np.array([10.0, 20.0, 40.0])
    top1 = prior.top1_from_costs(np.full(3, prior.macs_range[1]), np.full(3, 224.0), blocks, np.ones(3))
    assert top1[0] < top1[1] == top1[2]
    assert top1[2] < max(model.top1[224] for model in PUBLISHED.values()) + 0.5


def test_more_macs_of_one_shape_are_worth_more() -> None:
    prior = AccuracyPrior()
    for blocks, share in ((5.0, 0.0), (20.0, 1.0), (60.0, 0.5)):
        macs = np.geomspace(0.01, 1, 20) * prior.macs_range[1]
        top1 = prior.top1_from_costs(macs, np.full(20, 224.0), np.full(20, blocks), np.full(20, share))
        assert (np.diff(top1) > 0).all()


def test_extrapolation_is_flagged() -> None:
    prior = AccuracyPrior()
    b3, nano = PRESETS["lowformer_b3"], PRESETS["cpubone_nano"]
    stages = (*b3.stages[:3], b3.stages[3].model_copy(update={"depth": 9}))
    larger = b3.model_copy(update={"stages": stages})
    configs = [b3, nano, larger, b3.model_copy(update={"resolution": 288}), b3.model_copy(update={"resolution": 128})]
    assert prior.extrapolates(configs).tolist() == [False, False, True, False, True]


def test_macs_outside_the_published_range_are_flagged() -> None:
    prior, nano = AccuracyPrior(), PRESETS["cpubone_nano"]
    narrower = nano.replace(stem_width=8)
    assert prior.macs_range == pytest.approx((0.187e9, 6.099e9), rel=0.01)
    assert total_macs([narrower])[0] < prior.macs_range[0] / MACS_TOLERANCE
    assert prior.extrapolates([nano, narrower]).tolist() == [False, True]
    assert not prior.extrapolates([model.config for model in PUBLISHED.values()]).any()


def test_bulk_speed() -> None:
    prior = AccuracyPrior()
    configs = list(PRESETS.values()) * 500
    prior.imagenet_top1(configs)
    started = time.process_time()
    prior.imagenet_top1(configs)
    assert len(configs) / (time.process_time() - started) > 5_000


def test_too_few_published_models() -> None:
    with pytest.raises(ValueError, match="at least 6 published models, given 2"):
        AccuracyPrior(dict(list(PUBLISHED.items())[:2]))


def test_imports_neither_torch_nor_ray_nor_optuna() -> None:
    code = "import sys, lownas.predictors.accuracy.prior; print({'torch', 'ray', 'optuna'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
