"""Published models beside a run's candidates."""

from lownas.search.feasible_pool import over_budget
from lownas.search_space.presets import PRESETS


def test_published_models_beside(outcome, predictor) -> None:
    rows = {row.name: row for row in outcome.published}
    assert set(rows) == set(PRESETS)
    assert rows["lowformer_b1"].top1 == 79.81
    assert abs(rows["lowformer_b1"].prior_top1 - 79.81) < 0.5
    assert round(rows["lowformer_b1"].macs / 1e6) == 1411


def test_those_over_the_budget_or_a_limit_are_marked(run_search, predictor) -> None:
    used = predictor.quantile_ms(list(PRESETS.values()), 0.9)
    alone = run_search(latency_budget_ms=4.0, trials=2, repeats=0)
    over = {row.name: row.over_budget for row in alone.published}
    assert over == dict(zip(PRESETS, over_budget(used, 4.0).tolist(), strict=True)) and len(set(over.values())) == 2
    limited = run_search(latency_budget_ms=4.0, trials=2, repeats=0, max_params=1e6, run=f"{alone.run}-limited")
    assert all(row.over_budget for row in limited.published)
