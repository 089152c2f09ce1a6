"""Published models beside a run's candidates."""

from lownas.search.results.published import published_rows
from lownas.search_space.presets import PRESETS


def test_published_models_beside(predictor) -> None:
    rows = {row.name: row for row in published_rows(predictor)}
    assert set(rows) == set(PRESETS)
    assert rows["lowformer_b1"].top1 == 79.81
    assert abs(rows["lowformer_b1"].prior_top1 - 79.81) < 0.5
    assert round(rows["lowformer_b1"].macs / 1e6) == 1411
