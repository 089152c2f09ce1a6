"""The case study's report, on made-up rows and on a tenth of those that are committed."""

from __future__ import annotations

import json

import pytest
import torch

from lownas.experiments.case_study import report
from lownas.experiments.case_study.arms import Network
from lownas.experiments.case_study.pruned import read_pruned
from lownas.search_space import PRESETS, build_model
from lownas.search_space.scaling import scaled


def made_up() -> tuple[list[dict], ...]:
    """Two networks with three seeds at one budget, and one that was never trained."""
    names = ("search@0.6", "lowformer_b0/width@0.6", "random@0.6")
    networks = [{"name": name} for name in names]
    looks = [{"network": name, "ms": 0.55 + 0.01 * turn} for name in names for turn in range(11)]
    scores = {names[0]: (0.930, 0.932, 0.934), names[1]: (0.925, 0.927, 0.929)}
    tests = [{"network": n, "seed": i, "top1": a} for n, each in scores.items() for i, a in enumerate(each)]
    trainings = [{"network": row["network"], "seed": row["seed"], "seconds": 600} for row in tests]
    return networks, trainings, looks, tests


def test_means_errors_and_what_is_missing() -> None:
    found = report.results(*made_up())
    answer, width, random = found
    assert (answer.mean, answer.latency_ms, answer.core_minutes) == (93.2, 0.56, 10.0)
    assert answer.error == pytest.approx(0.2 / 3**0.5, abs=1e-3)
    assert (width.group, random.top1, random.mean) == ("width", (), None)
    (row,) = report.comparisons(found)
    assert (row["against"], row["points"]) == ("lowformer_b0/width@0.6", 0.5)
    assert row["standard_error"] == pytest.approx(answer.error * 2**0.5, abs=1e-3)
    absent = report.missing(found)
    assert "random search at 0.6 ms" in absent and "lownas at 0.6 ms" not in absent
    assert len(report.table(found).splitlines()) == 5


def test_a_figure_of_what_is_there(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    report.draw(report.results(*made_up()), tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert "random search at 0.6 ms" in drawn and "within 0.6 ms" in drawn


@pytest.mark.parametrize("task", report.TASKS)
def test_a_tenth_of_the_rows_gives_the_same_networks(task: str) -> None:
    rows = [report.read(task, name) for name in report.KINDS]
    if not rows[0]:
        pytest.skip("the study has not begun")
    everything = report.results(*rows)
    tenth = report.results(rows[0], rows[1], rows[2][::10], rows[3])
    assert [each.name for each in tenth] == [each.name for each in everything]
    assert [each.mean for each in tenth] == [each.mean for each in everything]
    assert json.loads(json.dumps(report.comparisons(everything))) == report.comparisons(everything)


def test_pruned_weights_make_the_network_that_they_are_of(tmp_path) -> None:
    from safetensors.torch import save_file

    config = scaled(PRESETS["lowformer_b0"], width=0.25, resolution=48).replace(classes=10)
    whole = build_model(config).eval()
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    mlp, keep = "stages.3.1.mlp.main", 24  # a hidden layer loses channels: of the one before and the one after
    before, after = (next(n for n in state if n.startswith(f"{mlp}.{i}.") and n.endswith("weight")) for i in (1, 3))
    state[before], state[after] = state[before][:keep], state[after][:, :keep]
    for name in [n for n in state if n.startswith(before.removesuffix("weight")) and n.endswith("bias")]:
        state[name] = state[name][:keep]
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "pruned.safetensors")
    model = read_pruned(config, tmp_path / "pruned.safetensors").eval()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    row = Network("fastnas@0.6", config=config, pruned="pruned").to_row()
    assert Network.from_row(json.loads(json.dumps(row))).is_module
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 10)
