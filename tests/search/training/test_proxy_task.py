"""The default evaluation: proxy training, from the plan to the result."""

import json

import numpy as np
import pytest

from lownas.search.training.proxy_task import plan_proxy, train_candidate
from lownas.search_space.graph.from_config import op_graph

SMALL = {"epochs": 1, "train_images": 128, "validation_images": 64}


def test_planned_and_trained(settings, space) -> None:
    rng = np.random.default_rng(0)
    configs = sorted((space.sample(rng) for _ in range(100)), key=lambda config: op_graph(config).macs)[:3]
    asked = settings(data="digits", proxy_budget_s=6.0, trials=2, repeats=1)
    proxy = plan_proxy(asked, configs)
    assert json.loads(json.dumps(proxy)) == proxy
    card = proxy.pop("data_card")
    assert card["data"] == "digits" and card["classes"] == 10 and len(card["identity"]) == 12
    assert sum(part["train"] for part in card["images_by_class"].values()) == card["train_images"]
    assert sum(part["validation"] for part in card["images_by_class"].values()) == card["validation_images"]
    assert plan_proxy(asked.replace(proxy_epochs=2), configs)["epochs"] == 2
    task = {"trial": 0, "config": configs[0].to_dict(), "seed": 3, "data": "digits", "proxy": proxy | SMALL}
    value = train_candidate(task)
    assert value["status"] == "complete" and 0 < value["accuracy"] <= 1 and value["seconds"] > 0
    assert len(value["history"]) == 1
    json.dumps(value, allow_nan=False)
    again = train_candidate(task)
    assert again["accuracy"] == value["accuracy"]


def test_missing_data_is_said_before_anything_starts(settings, space, tmp_path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        plan_proxy(settings(data=f"imagefolder:{tmp_path / 'none'}"), [space.sample(np.random.default_rng(0))])
