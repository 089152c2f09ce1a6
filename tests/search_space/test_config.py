from __future__ import annotations

import json
from typing import Any

import pytest

from lownas.search_space import PRESETS, LowFormerConfig


def changed(name: str, stage: int, **fields: Any) -> LowFormerConfig:
    data = PRESETS[name].to_dict()
    data["stages"][stage].update(fields)
    return LowFormerConfig.from_dict(data)


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip_keeps_config_and_id(name: str) -> None:
    config = PRESETS[name]
    again = LowFormerConfig.from_json(config.to_json())
    assert again == config and again.id == config.id and hash(again) == hash(config)


def test_ids_differ_between_architectures() -> None:
    assert len({config.id for config in PRESETS.values()}) == len(PRESETS)


def test_id_is_stable_across_versions() -> None:
    assert PRESETS["lowformer_b1"].id == "29d06b67606e"


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (0, {"expansion": 2}),  # stage 1 of B1 is its downsampler alone
        (1, {"local": "unfused"}),
        (2, {"local": "fused_below_200"}),
        (2, {"attention": {"placement": "last_5", "stride": 2}}),
        (2, {"attention": {"placement": "last_9", "stride": 2}}),
    ],
)
def test_what_is_switched_off_makes_no_difference(stage: int, fields: dict[str, Any]) -> None:
    assert changed("lowformer_b1", stage, **fields) == PRESETS["lowformer_b1"]


def test_placement_names_of_one_mask_are_one() -> None:
    a = changed("lowformer_b1", 2, depth=2, attention={"placement": "alternate"})
    b = changed("lowformer_b1", 2, depth=2, attention={"placement": "last_1"})
    assert a == b and a.id == b.id
    assert a.stages[2].attention is not None and a.stages[2].attention.attends(2) == (False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"resolution": 3}, "resolution: .*16.*given: 3"),
        ({"resolution": "big"}, "resolution: "),
        ({"stem_width": 7}, "stem_width: .*multiple of 2"),
        ({"head_widths": [0, 5]}, "head_widths"),
        ({"classes": 0}, "classes"),
        ({"stages": []}, "stages"),
    ],
)
def test_bad_values_are_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LowFormerConfig.from_dict({**PRESETS["lowformer_b0"].to_dict(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        (0, {"depth": 0}, "stages.0.depth"),
        (0, {"depth": 3, "mlp_ratio": 4}, "stages 2, 3 and 4"),
        (2, {"groups": 3}, "groups: must divide"),
        (2, {"local": "melted"}, "'fused', 'unfused' and 'fused_below_N'"),
        (3, {"attention": {"placement": "first_2"}}, "'last_K'"),
        (3, {"attention": {"strides": 2}}, "strides: unknown key"),
    ],
)
def test_bad_stages_are_named(stage: int, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed("lowformer_b1", stage, **fields)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, json.dumps({"stages": 1})])
def test_broken_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="LowFormer config"):
        LowFormerConfig.from_json(text)
