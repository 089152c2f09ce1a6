"""The table of trained and measured networks: that it is whole, and that training it again gives the same."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lownas.evaluators.data.sources.fashion_mnist import FASHION_FOLDER
from lownas.experiments.tabular import Network, Table, Training
from lownas.experiments.tabular.table import TABLE
from lownas.experiments.tabular.training import LONG, SHORT, Draws, augmented, rates, train, train_many
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph

PLAN = json.loads(TABLE.with_name("plan.json").read_text())


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.load()


def seed_noise(table: Table) -> float:
    """Standard deviation of the final validation accuracy between seeds, over all short trainings."""
    pairs = [[table.query(n.config, seed=seed).validation_accuracy for seed in (0, 1)] for n in table.networks]
    return float(np.sqrt(np.mean(np.diff(pairs) ** 2) / 2))


def test_all_that_was_planned_is_there(table: Table) -> None:
    missing = {entry["id"] for entry in PLAN} - {network.config.id for network in table.networks}
    if missing:
        pytest.skip(f"{len(missing)} of {len(PLAN)} networks are still to be trained")


def test_rows_are_complete(table: Table) -> None:
    planned = {entry["id"]: entry for entry in PLAN}
    epochs = {name: schedule["epochs"] for name, schedule in table.card["schedules"].items()}
    for network in table.networks:
        entry = planned[network.config.id]
        assert network.role == entry["role"]
        assert set(network.trainings) == {(name, seed) for name, seeds in entry["seeds"].items() for seed in seeds}
        for (schedule, seed), training in network.trainings.items():
            assert (training.id, training.schedule, training.seed) == (network.config.id, schedule, seed)
            curves = (training.train_loss, training.validation_loss, training.validation_accuracy)
            assert {len(curve) for curve in (*curves, training.test_accuracy)} == {epochs[schedule]}
            assert all(np.isfinite(curve).all() for curve in curves)
            assert 0.5 < training.validation_accuracy[-1] < 1 and 0.5 < training.test_accuracy[-1] < 1
            assert training.device
        assert 0.3 < network.epoch_seconds < 1000
        assert len(network.looks_ms) >= 3 and all(len(look) >= 30 for look in network.looks_ms)
        assert 0.05 < network.latency_ms < 20


def test_configs_are_valid_unique_and_of_the_space(table: Table) -> None:
    space = SearchSpace.load("tiny")
    assert len({network.config.id for network in table.networks}) == len(table)
    for network in table.networks:
        assert LowFormerConfig.from_dict(network.config.to_dict()) == network.config
        graph = op_graph(network.config)
        assert (network.params, network.macs) == (graph.params, graph.macs)
        if network.role in PRESETS:
            assert network.config == PRESETS[network.role].replace(resolution=32, classes=10)
        else:
            assert network.config in space


def test_groups_have_nearly_equal_latency(table: Table) -> None:
    groups: dict[str, list[float]] = {}
    for network in table.networks:
        if network.role.startswith("group_"):
            groups.setdefault(network.role, []).append(network.latency_ms)
    for latencies in groups.values():
        assert max(latencies) / min(latencies) < 1.15


@pytest.mark.slow
@pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_training_again_gives_the_same_within_the_seed_noise(table: Table) -> None:
    rng = np.random.default_rng(20)
    ours = [network for network in table.networks if network.role not in PRESETS]
    for index in rng.choice(len(ours), 3, replace=False):
        network, seed = ours[index], int(rng.integers(2))
        curve = train(network.config, SHORT, seed)
        known = table.query(network.config, seed=seed).validation_accuracy
        # Another machine may add in another order, which is as good as another seed.
        assert abs(curve.validation_accuracy[-1] - known) <= 4 * np.sqrt(2) * seed_noise(table), network.config.id


def test_what_is_random_is_drawn_once_for_all_devices() -> None:
    short = replace(SHORT, epochs=2)
    draws, again = (Draws.of(short, 300, 28, seed=3) for _ in range(2))
    assert draws.index.shape == draws.mirrored.shape == (4, 128)  # an incomplete last batch is left out
    assert torch.equal(draws.index, again.index) and torch.equal(draws.mirrored, again.mirrored)
    assert len(set(draws.index[:2].flatten().tolist())) == 256 and 0.3 < draws.mirrored.float().mean() < 0.7
    assert draws.margin == 0 and Draws.of(replace(LONG, epochs=1), 300, 56, 0).margin == 4


def test_images_are_mirrored_and_moved_over_black() -> None:
    images = torch.arange(1, 33, dtype=torch.uint8).view(2, 1, 4, 4)
    start = torch.tensor([[1, 0], [1, 2]])  # the first stays, the second is moved down and left
    first, second = augmented(images, torch.tensor([True, False]), start, 1)
    assert torch.equal(first, images[0].flip(2))
    assert torch.equal(second[0, 1:, :3], images[1, 0, :3, 1:])
    assert not second[0, 0].any() and not second[0, :, 3].any()


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    shares = rates(SHORT, 100)
    assert shares[0] == pytest.approx(0.1) and shares.max() == pytest.approx(1.0)
    assert 10 <= int(shares.argmax()) <= 20 and shares[-1] < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_a_gpu_trains_many_at_once_by_the_same_draws(table: Table) -> None:
    once = replace(SHORT, epochs=1)
    jobs = [(network.config, once, 0) for network in table.networks[:3]]
    curves = dict(train_many(jobs, at_once=3))
    for config, _, seed in jobs:
        curve = train(config, once, seed)
        assert curves[config, once, seed].train_loss[0] == pytest.approx(curve.train_loss[0], rel=0.03)


def test_queries(table: Table) -> None:
    network = table.networks[0]
    epochs = table.card["schedules"]["short"]["epochs"]
    last = table.query(network.config)
    assert last == table.query(network.config.id, epoch=epochs, seed=0)
    first = table.query(network.config, epoch=1)
    assert first.validation_accuracy == network.trainings["short", 0].validation_accuracy[0]
    assert first.train_seconds == pytest.approx(last.train_seconds / epochs)
    assert network.config in table and network.config.id in table and "nobody" not in table
    with pytest.raises(ValueError, match="'nobody' is not one of the table's"):
        table.query("nobody")
    with pytest.raises(ValueError, match=rf"epoch: 1 to {epochs} .* given {epochs + 1}"):
        table.query(network.config, epoch=epochs + 1)
    with pytest.raises(ValueError, match=r"no 'short' training with seed 7; there are short 0, short 1"):
        table.query(network.config, seed=7)


def small_network(seed: int) -> Network:
    config = SearchSpace.load("tiny").sample(np.random.default_rng(seed))
    training = Training(config.id, "short", 0, (1.0,), (0.9,), (0.7,), (0.69,), "cpu")
    graph = op_graph(config)
    return Network(config, "spread", graph.params, graph.macs, ((0.1, 0.2, 0.3), (0.5,)), 2.5, {("short", 0): training})


def test_a_file_keeps_everything_and_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    table = Table([small_network(1), small_network(2)], {"planned": 2})
    assert table.networks[0].latency_ms == pytest.approx(0.35)
    files = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for file in files:
        table.write(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    again = Table.load(files[0])
    assert again.networks == table.networks and again.card["planned"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gz", "b.gz"]
    with pytest.raises(ValueError, match="once"):
        Table([small_network(1), small_network(1)])


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"[]\n"), gzip.compress(b'{"schema": 99}\n')])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a table"):
        Table.load(path)
    with pytest.raises(ValueError, match="not a table"):
        Table.load(tmp_path / "missing.gz")
