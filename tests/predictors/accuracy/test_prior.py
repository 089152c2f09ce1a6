"""The accuracy prior: close to what was published, sure of it, and unsure of everything else."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lownas.predictors import AccuracyPrior
from lownas.predictors.accuracy import family_law
from lownas.predictors.accuracy.family_law import FamilyLaw
from lownas.predictors.accuracy.features import NAMES, ConfigFeatures, graph_features
from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.presets import PUBLISHED

SHIPPED = Path(family_law.__file__).with_name("imagenet.json")


@pytest.fixture(scope="module")
def prior():
    return AccuracyPrior.load()


def published():
    return [(m.config.replace(resolution=r), top1) for m in PUBLISHED.values() for r, top1 in m.top1.items()]


def with_stage(config, number, **changes):
    stages = list(config.stages)
    stages[number - 1] = stages[number - 1].model_copy(update=changes)
    return config.replace(stages=tuple(stages))


def spread(prior, configs):
    return np.array([p.high_top1 - p.low_top1 for p in prior.predict(configs)])


def test_published_models_are_within_their_intervals(prior):
    for (config, top1), found in zip(published(), prior.predict([c for c, _ in published()]), strict=True):
        assert found.low_top1 < top1 < found.high_top1
        assert abs(found.top1 - top1) < 0.5
        assert found.coverage == 0.9 and found.outside == ()
        assert PUBLISHED[found.nearest].config.replace(resolution=config.resolution) == config


def test_error_of_published_models_left_out(prior):
    assert 0.1 < prior.leave_one_out_error < 0.4
    assert prior.worst_leave_one_out_error < 1.0
    without = AccuracyPrior(published={name: m for name, m in PUBLISHED.items() if name != "lowformer_b3"})
    b3 = PRESETS["lowformer_b3"]
    error = without.imagenet_top1([b3])[0] - PUBLISHED["lowformer_b3"].top1[224]
    assert error == pytest.approx(prior.left_out[0][prior._names.index("lowformer_b3")])
    assert spread(without, [b3])[0] > 1.2 * spread(prior, [b3])[0]


def test_one_published_model_cannot_be_left_out():
    with pytest.raises(ValueError, match="at least two"):
        _ = AccuracyPrior(published={"lowformer_b1": PUBLISHED["lowformer_b1"]}).left_out


def test_quantiles_and_intervals_agree(prior):
    configs = [config for config, _ in published()]
    found = prior.predict(configs, coverage=0.8)
    assert np.allclose([p.top1 for p in found], prior.imagenet_top1(configs))
    assert np.allclose([p.low_top1 for p in found], prior.quantile(configs, 0.1))
    assert np.allclose([p.high_top1 for p in found], prior.quantile(configs, 0.9))
    assert prior.predict([]) == []
    with pytest.raises(ValueError, match="coverage must be between 0 and 1, given 1"):
        prior.predict(configs, coverage=1)


def test_unsure_in_every_direction_of_the_space(prior):
    """From a published model outwards, whatever is changed: the interval widens."""
    b1 = PRESETS["lowformer_b1"]
    changed = [
        b1.replace(resolution=128),
        b1.replace(stem_width=64),
        with_stage(b1, 1, depth=8),
        with_stage(b1, 2, depth=8),
        with_stage(b1, 3, depth=24),
        with_stage(b1, 4, depth=24),
        with_stage(b1, 3, width=512),
        with_stage(b1, 4, width=1024),
        with_stage(b1, 3, attention=None),
        with_stage(b1, 3, mlp_ratio=0),
        with_stage(b1, 4, kernel=5),
        with_stage(b1, 3, local="unfused"),
        with_stage(b1, 3, groups=8),
        with_stage(b1, 3, expansion=8),
    ]
    assert (spread(prior, changed) > 1.05 * spread(prior, [b1])).all()


def test_farther_is_less_sure(prior):
    b1 = PRESETS["lowformer_b1"]
    for number, field, values in (
        (2, "depth", (1, 3, 6, 12)),
        (3, "width", (128, 192, 384, 768)),
        (4, "depth", (5, 8, 16, 32)),
    ):
        widths = spread(prior, [with_stage(b1, number, **{field: value}) for value in values])
        assert (np.diff(widths) > 0).all(), (number, field, widths)


def test_beyond_what_was_published_nothing_is_gained(prior):
    b3 = PRESETS["lowformer_b3"].replace(resolution=288)
    wider = [with_stage(b3, 4, width=width, local="unfused") for width in (512, 768, 1536, 3072)]
    larger = [b3.replace(resolution=resolution) for resolution in (288, 320, 384, 512)]
    for series in (wider, larger):
        lower = prior.quantile(series, 0.1)
        assert (np.diff(lower) < 0).all()


def test_compute_late_is_worth_more_than_early(prior):
    """Two networks of about the same MACs: the one with more in its first stages is expected to be worse."""
    early, late = with_stage(PRESETS["lowformer_b1"], 2, depth=5), with_stage(PRESETS["lowformer_b1"], 4, depth=12)
    assert op_graph(early).macs == pytest.approx(op_graph(late).macs, rel=0.03)
    assert prior.imagenet_top1([early])[0] < prior.imagenet_top1([late])[0] - 0.3
    assert prior.quantile([early], 0.1)[0] < prior.quantile([late], 0.1)[0] - 0.3


def test_gain_over_a_published_model_and_over_another(prior):
    b3, b1 = PRESETS["lowformer_b3"], PRESETS["lowformer_b1"]
    middle, low, high = prior.gain([b1, b3], b3)
    assert middle[0] == pytest.approx(prior.imagenet_top1([b1])[0] - PUBLISHED["lowformer_b3"].top1[224])
    assert low[0] < middle[0] < high[0] < 0
    assert (middle[1], low[1], high[1]) == (0, 0, 0)
    # Not published: what both have in common is no reason to doubt the difference.
    smaller = b3.replace(resolution=192)
    middle, low, high = prior.gain([b3.replace(resolution=208)], smaller)
    assert 0 < middle[0] < 1
    assert high[0] - low[0] < 0.9 * np.hypot(*spread(prior, [b3.replace(resolution=208), smaller]))


def test_far_from_everything_published_is_said(prior):
    assert not prior.extrapolates([config for config, _ in published()]).any()
    space = SearchSpace.load("tiny")
    rng = np.random.default_rng(0)
    assert prior.extrapolates([space.sample(rng) for _ in range(50)]).all()
    small = prior.predict([PRESETS["lowformer_b3"].replace(resolution=192)])[0]
    assert small.outside == ("resolution",)


def test_twenty_thousand_a_second(prior):
    """A wide margin: a busy machine may be several times slower."""
    space, rng = SearchSpace.load("default"), np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(4000)]
    prior.quantile(configs, 0.1)
    start = time.perf_counter()
    prior.quantile(configs, 0.1)
    assert len(configs) / (time.perf_counter() - start) > 4000


def test_features_of_configurations_and_graphs_agree():
    configs = [*PRESETS.values(), *(PRESETS["lowformer_b0"].replace(resolution=r) for r in (160, 288))]
    bulk = ConfigFeatures()(configs)
    assert bulk.shape == (len(configs), len(NAMES))
    for config, found in zip(configs, bulk, strict=True):
        assert np.allclose(found, graph_features(op_graph(config), config.resolution), atol=1e-9)
    values = dict(zip(NAMES, bulk[0].tolist(), strict=True))
    assert values["resolution"] == 0 and 0 < values["early compute"] < 0.2
    assert np.exp(values["compute"]) * 1e9 < op_graph(configs[0]).macs


def test_other_heads_and_class_counts_change_nothing_but_the_head(prior):
    b1 = PRESETS["lowformer_b1"]
    assert prior.imagenet_top1([b1.replace(classes=10)])[0] == pytest.approx(prior.imagenet_top1([b1])[0])


def damaged(tmp_path, change):
    content = json.loads(SHIPPED.read_text())
    path = tmp_path / "prior.json"
    path.write_text(change(content))
    return path


def sealed(content):
    body = {name: value for name, value in content.items() if name != "checksum"}
    from lownas.predictors.model_files import checksum

    return json.dumps({**body, "checksum": checksum(body)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: SHIPPED.read_text()[:1000], "broken"),
        (lambda c: "[]", "lacks schema"),
        (lambda c: json.dumps({**c, "noise_sd": 0.001}), "altered"),
        (lambda c: sealed({**c, "schema": 99}), "newer"),
        (lambda c: sealed({**c, "slopes": c["slopes"][:-1]}), "slopes is not of size"),
        (lambda c: sealed({**c, "slopes_covariance": [*c["slopes_covariance"][:-1], [1.0]]}), "not a square"),
        (
            lambda c: sealed({**c, "slopes_covariance": [c["slopes_covariance"][0]] * len(c["slopes"])}),
            "not a covariance",
        ),
        (lambda c: sealed({**c, "schema": True}), "lacks schema"),
        (lambda c: sealed({**c, "noise_sd": -1.0}), "not positive"),
        (lambda c: sealed({**c, "features": c["features"][::-1]}), "other features"),
        (lambda c: sealed({**c, "colour": 1}), "unknown key"),
    ],
)
def test_a_file_that_cannot_be_used_ends_in_one_line(tmp_path, change, says):
    with pytest.raises(ValueError, match=says) as error:
        AccuracyPrior.load(damaged(tmp_path, change))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_no_published_model_end_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot read accuracy prior"):
        AccuracyPrior.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="at least one published model"):
        AccuracyPrior(published={})


def test_round_trip(tmp_path, prior):
    prior.law.save(tmp_path / "prior.json")
    again = AccuracyPrior.load(tmp_path / "prior.json")
    configs = [config for config, _ in published()]
    assert np.array_equal(again.imagenet_top1(configs), prior.imagenet_top1(configs))
    assert FamilyLaw.load(SHIPPED).provenance["rows"] > 500


def test_predicting_needs_neither_torch_nor_scipy():
    code = (
        "import sys; from lownas.predictors import AccuracyPrior; from lownas.search_space import PRESETS; "
        "AccuracyPrior.load().predict(list(PRESETS.values())); "
        "print({'torch', 'ray', 'optuna', 'scipy', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
