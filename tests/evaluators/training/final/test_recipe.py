"""The recipe: what the papers publish for each model, and how it is scaled to less data and fewer epochs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lownas.evaluators.training.final.recipe import (
    TrainingFacts,
    TrainingRecipe,
    choose_recipe,
    nearest_published,
    read_choices,
)
from lownas.search_space import PRESETS, SearchSpace

IMAGENET = {"images": 1_281_167, "side": 224}
PUBLISHED = {
    # batch, rate, RandAugment's operations and strength, mixup, drop path, erasing, agreement
    "lowformer_b0": (170, 3.32e-4, 1, 3, 0.1, 0.05, 0.0, 0.0),
    "lowformer_b1": (128, 2.5e-4, 1, 3, 0.1, 0.05, 0.0, 0.0),
    "lowformer_b15": (170, 1.66e-4, 2, 6, 0.3, 0.1, 0.0, 0.0),
    "lowformer_e1": (200, 1e-4, 2, 6, 0.3, 0.1, 0.0, 0.0),
    "lowformer_b3": (300, 9.4e-5, 2, 5, 0.2, 0.1, 0.2, 2.0),
    "lowformer_e2": (200, 1e-4, 2, 5, 0.2, 0.1, 0.2, 2.0),
    "lowformer_e3": (400, 6.25e-5, 2, 5, 0.3, 0.1, 0.2, 2.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_on_imagenet_it_is_what_the_papers_publish(name: str) -> None:
    recipe, why = choose_recipe(TrainingFacts(PRESETS[name], **IMAGENET), 300)
    batch, rate, layers, strength, mix, drop_path, erasing, agreement = PUBLISHED[name]
    assert (recipe.base, recipe.batch_size, recipe.learning_rate) == ("papers", batch, pytest.approx(rate))
    assert (recipe.randaugment_layers, recipe.randaugment_magnitude) == (layers, strength)
    assert (recipe.mixup, recipe.cutmix, recipe.drop_path) == (mix, mix, drop_path)
    assert (recipe.erasing, recipe.agreement) == (erasing, agreement)
    assert [round(224 * side) for side in recipe.sides] == [128, 160, 192, 224] and recipe.judged_share == 0.95
    assert (recipe.loss, recipe.label_smoothing, recipe.ema, recipe.weight_decay) == ("bce", 0.1, 0.9998, 0.1)
    assert recipe.warmup_share * 300 == pytest.approx(20) and recipe.batch_norm_images == 16_000
    assert why["mixup"] == f"as published for {name}" and recipe.precision == "fp32"


def test_other_networks_take_the_recipe_of_the_model_they_are_most_like() -> None:
    assert nearest_published(PRESETS["cpubone_b3"]) in ("lowformer_b2", "lowformer_b3")
    assert nearest_published(PRESETS["cpubone_nano"]) in ("lowformer_b0", "lowformer_b1")
    assert nearest_published(PRESETS["lowformer_e1"].replace(classes=7, resolution=160)) == "lowformer_e1"
    assert nearest_published(SearchSpace.load("tiny").sample(np.random.default_rng(0))) == "lowformer_b0"


def test_what_regularizes_grows_with_the_epochs() -> None:
    facts = TrainingFacts(PRESETS["lowformer_b15"], images=20_000, side=224)
    recipes = [choose_recipe(facts, epochs)[0] for epochs in (10, 30, 100, 300, 1000)]
    for name in ("mixup", "cutmix", "drop_path", "randaugment_magnitude"):
        values = [getattr(recipe, name) for recipe in recipes]
        assert values[0] == values[1] == 0 < values[2] < values[3] == values[4], name
    assert recipes[3].mixup == 0.3


def test_small_pictures_are_shifted_and_large_ones_cropped() -> None:
    small, _ = choose_recipe(TrainingFacts(None, images=5000, side=48, max_shift=1 / 16, mirrored=False), 20)
    large, _ = choose_recipe(TrainingFacts(None, images=5000, side=160, max_shift=1 / 16), 20)
    assert (small.crop, small.max_shift, small.sides, small.flip) == (1.0, 1 / 16, (1.0,), False)
    assert (large.crop, large.max_shift, len(large.sides), large.flip) == (0.35, 0.0, 4, True)


def test_lopsided_data_gpus_inherited_weights_and_other_tasks() -> None:
    def recipe(**facts: object) -> TrainingRecipe:
        return choose_recipe(TrainingFacts(None, images=5000, side=48, **facts), 100)[0]  # type: ignore[arg-type]

    assert recipe(lopsidedness=30.0).balance == "weights" and recipe(lopsidedness=3.0).balance == "none"
    assert recipe(on_gpu=True).precision == "fp16" and recipe().precision == "fp32"
    assert recipe(inherited=True).learning_rate < recipe().learning_rate
    assert recipe(orthogonal_images=20.0).matrix_rate > 0 == recipe(orthogonal_images=2000.0).matrix_rate
    regression = recipe(mixes=False)
    assert (regression.mixup, regression.cutmix, regression.erasing, regression.loss) == (0, 0, 0, "ce")


def test_every_choice_can_be_given_and_says_so() -> None:
    given = read_choices({"mixup": "0.3", "sides": "0.5/1", "flip": "no", "batch_size": "96", "loss": "bce"})
    recipe, why = choose_recipe(TrainingFacts(None, images=5000, side=48), 20, given)
    assert (recipe.mixup, recipe.sides, recipe.flip, recipe.batch_size, recipe.loss) == (
        0.3,
        (0.5, 1),
        False,
        96,
        "bce",
    )
    assert {name for name, reason in why.items() if reason == "given"} == set(given)
    assert set(why) == set(recipe.to_dict())
    assert TrainingRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    papers, _ = choose_recipe(TrainingFacts(None, images=5000, side=48), 20, {"base": "papers"})
    assert papers.base == "papers" and papers.loss == "bce"


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"mixupp": 1}, "unknown mixupp; allowed are accumulation, agreement,"),
        ({"mixup": "a lot"}, "mixup takes a number, given 'a lot'"),
        ({"mixup": -1}, "mixup must be at least 0, given -1"),
        ({"batch_size": 1}, "batch_size must be an integer of at least 2, given 1"),
        ({"batch_size": "3.5"}, "batch_size takes an integer, given '3.5'"),
        ({"flip": "perhaps"}, "flip takes yes or no, given 'perhaps'"),
        ({"sides": "big"}, "sides takes shares such as 0.5/0.75/1, given 'big'"),
        ({"loss": "mse"}, "loss must be one of ce, bce, given 'mse'"),
        ({"precision": "int8"}, "precision must be one of fp32, fp16, bf16, given 'int8'"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, given nan"),
        ({"crop": 0}, "crop must be above 0 and at most 1"),
    ],
)
def test_impossible_choices_are_one_line(choices: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^recipe: {said}") as error:
        choose_recipe(TrainingFacts(None, images=5000, side=48), 20, choices)
    assert "\n" not in str(error.value)


def test_what_was_adapted_says_why() -> None:
    recipe, why = choose_recipe(TrainingFacts(None, images=5000, side=160, frozen=True, one_size=True), 200)
    assert (recipe.drop_path, recipe.sides) == (0.0, (1.0,))
    assert why["drop_path"] == why["sides"] == "only the head is trained" and "published" in why["mixup"]
    _, why = choose_recipe(TrainingFacts(None, images=5000, side=48, mixes=False), 200)
    assert why["mixup"] == why["erasing"] == "no classification"


def test_batch_norm_has_two_images() -> None:
    with pytest.raises(ValueError, match="accumulation must be at most half of batch_size 64, given 64"):
        TrainingRecipe(batch_size=64, accumulation=64)
    assert TrainingRecipe(batch_size=64, accumulation=32).accumulation == 32
