"""Configs: what is refused, what they are as JSON,
and which of their fields are part of a result's identity.
"""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.sweep.config import (
    DataSettings,
    EvaluationSettings,
    FinalSettings,
    ModelSettings,
    ResourceSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.search.search_space import SearchPoint, parse_choice, parse_pair
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingSettings
from sat_ray.utils.serialization import content_hash, flatten, to_json
from sat_ray.utils.settings_json import from_json

BALL = ThreatModel("linf", 8 / 255)


def config(**sections: Any) -> SweepConfig:
    """Build a config whose attacks reach the edge of the ball."""
    return SweepConfig(recipe="toy", threat_model=BALL, **sections)


FULL = config(
    training=TrainingSettings(
        attack_step_size=8 / 255, validation_step_size=None, learning_rate=0.1 + 0.2
    ),
    search=SearchSettings(method="asha", activations=("silu", "elu:0.5"), pairs=(), rungs=(2, 5)),
    final=FinalSettings(seeds=(4, 7)),
    evaluation=EvaluationSettings(step_size=1 / 255, final_iterate=True),
    resources=ResourceSettings(gpus_per_worker=1, gpus_per_trial=0.5, accelerator="H200"),
)


@pytest.mark.parametrize(
    "one", [FULL, *(recipe() for recipe in RECIPES.values())], ids=["full", *RECIPES]
)
def test_a_config_survives_json_with_its_identity(one: SweepConfig) -> None:
    back = from_json(SweepConfig, json.loads(json.dumps(to_json(one))))
    assert back == one
    assert content_hash(back.semantic()) == content_hash(one.semantic())


def test_an_unknown_field_in_json_suggests_the_closest() -> None:
    value = to_json(FULL)
    value["training"]["epoch"] = 3
    with pytest.raises(
        ValueError, match=r"field of TrainingSettings 'epoch' is unknown; did you mean epochs"
    ):
        from_json(SweepConfig, value)


@given(epsilon=st.integers(1, 64), step=st.integers(1, 16), steps=st.integers(1, 40))
def test_an_attack_is_refused_exactly_where_its_steps_cannot_cross_the_radius(
    epsilon: int, step: int, steps: int
) -> None:
    """Whole numbers of 1/255 decide, so that the rounding of k/255 cannot:
    3 steps of 1/255 do reach 3/255.
    """

    def build() -> SweepConfig:
        evaluation = EvaluationSettings(steps=steps, step_size=step / 255)
        return SweepConfig(
            recipe="toy", threat_model=ThreatModel("linf", epsilon / 255), evaluation=evaluation
        )

    if steps * step < epsilon:
        with pytest.raises(
            ValueError, match=r"steps \* step_size must be .* out of reach; give a step_size >= "
        ):
            build()
    else:
        assert build().evaluation_attacks()[0].steps == steps


@pytest.mark.parametrize(
    "training",
    [
        TrainingSettings(attack_steps=2, attack_step_size=3 / 255),
        TrainingSettings(validation_steps=3),
        TrainingSettings(validation_steps=7, validation_step_size=1 / 255),
    ],
)
def test_training_and_validation_attacks_must_reach_the_edge_too(
    training: TrainingSettings,
) -> None:
    with pytest.raises(ValueError, match=r"steps \* step_size"):
        config(training=training)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 1.01, 8.0, float("nan"), float("inf")])
def test_an_epsilon_outside_0_to_1_is_refused(epsilon: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"threat_model\.epsilon must be (a number greater than 0 .*|in \(0, 1\], .*), got",
    ):
        ThreatModel("linf", epsilon)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: DataSettings(dataset="digist"),
            r"data\.dataset 'digist' is unknown; did you mean digits",
        ),
        (
            lambda: ModelSettings(name="resnet19"),
            r"model\.name 'resnet19' is unknown; did you mean resnet18",
        ),
        (
            lambda: ModelSettings(stem="tiny"),
            r"model\.stem 'tiny' is unknown; choose imagenet, small",
        ),
        (
            lambda: SearchSettings(activations=("sillu",)),
            r"search\.activations 'sillu' is unknown; did you mean silu",
        ),
        (
            lambda: SearchSettings(pairs=("relu/relu_smoth_backward",)),
            r"'relu_smoth_backward' is unknown; did you mean relu_smooth_backward",
        ),
        (
            lambda: SearchSettings(activations=("elu:1000",)),
            r"alpha of elu must be from 0\.001 to 100 for elu, got 1000",
        ),
        (
            lambda: SearchSettings(activations=("softplus:2",)),
            "must be left out for softplus, which takes no alpha",
        ),
        (
            lambda: SearchSettings(activations=("elu:a",)),
            r"search\.activations 'elu:a': an alpha must be a number, got 'a'",
        ),
        (lambda: SearchSettings(activations=("elu:nan",)), r"alpha of elu must be from .* got nan"),
        (
            lambda: SearchSettings(pairs=("relu",)),
            r"search\.pairs must be activation/attacker_activation.*, got 'relu'",
        ),
        (
            lambda: SearchSettings(pairs=("silu/relu",)),
            r"attacker_activation must share its forward pass with activation silu, got relu",
        ),
        (
            lambda: SearchSettings(pairs=("relu/smoothrelu_learned",)),
            r"must not have a learned alpha .*, got smoothrelu_learned",
        ),
        (lambda: SearchSettings(activations=(), pairs=()), "must name at least one activation"),
        (
            lambda: SearchSettings(rungs=(6, 3)),
            r"search\.rungs must be growing whole numbers of epochs, got \(6, 3\)",
        ),
        (lambda: SearchSettings(rungs=(3, 3)), r"search\.rungs"),
        (lambda: SearchSettings(rungs=()), r"search\.rungs"),
        (
            lambda: SearchSettings(reduction=1),
            r"search\.reduction must be a whole number from 2 to 1000000, got 1",
        ),
        (
            lambda: FinalSettings(seeds=(1, 1)),
            r"final\.seeds must be at least one seed, each once, got \(1, 1\)",
        ),
        (lambda: FinalSettings(seeds=()), r"final\.seeds"),
        (
            lambda: SearchSettings(seeds=(1, 1)),
            r"search\.seeds must be at least one seed, each once, got \(1, 1\)",
        ),
        (lambda: SearchSettings(seeds=()), r"search\.seeds"),
        (
            lambda: SearchSettings(method="asha", seeds=(0, 1)),
            r"search\.seeds must be one seed with --search\.method asha",
        ),
        (
            lambda: DataSettings(dataset="imagenet", image_size=5000),
            r"data\.image_size must be a whole number from 0 to 4096, got 5000",
        ),
        (
            lambda: EvaluationSettings(slots=0),
            r"evaluation\.slots must be a whole number from 1 to 65536, got 0",
        ),
        (
            lambda: ResourceSettings(train_workers=0),
            r"resources\.train_workers must be a whole number from 1 to 65536, got 0",
        ),
        (
            lambda: config(resources=ResourceSettings(train_workers=3)),
            "workers must be a divisor of 2, as they share 2 BatchNorm groups .*, got 3",
        ),
        (
            lambda: config(evaluation=EvaluationSettings(step_size=0.0)),
            r"evaluation\.step_size must be a number greater than 0 .*, got 0",
        ),
        (
            lambda: config(
                training=TrainingSettings(precision="bf16"),
                resources=ResourceSettings(accelerator="V100"),
            ),
            r"training\.precision must be float32 for resources\.accelerator V100, got bf16",
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_one_line_that_names_it(
    build: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_search_space_is_every_alpha_of_every_activation_and_the_pairs_each_once() -> None:
    default = SearchSettings().points()
    names = [name for name in ACTIVATIONS if name != "relu_smooth_backward"]
    points = sum(len(ACTIVATIONS[name].grid) for name in names)
    assert len(default) == points + 3 - 1  # three pairs; celu at 1 is elu at 1
    twice = SearchSettings(activations=("silu:1", "silu:1", "elu:1,1"), pairs=())
    assert len(twice.points()) == 2
    assert [one.alpha for one in parse_choice("elu:2,0.5", field="x")] == [2.0, 0.5]


def test_equal_configurations_are_equal_however_they_are_written() -> None:
    assert SearchPoint(activation="elu") == SearchPoint(
        activation="elu", alpha=1.0, attacker_activation="elu", attacker_alpha=1.0
    )
    pair = parse_pair("relu/relu_smooth_backward", field="x")
    assert pair == SearchPoint(
        activation="relu", attacker_activation="relu_smooth_backward", attacker_alpha=10.0
    )
    assert not pair.own_attacker and pair.slug == "relu-vs-relu_smooth_backward-a10"
    assert SearchPoint(**pair.to_json()) == pair


def test_configurations_of_one_search_have_different_names_for_files_and_people() -> None:
    """Two alphas that differ anywhere must not write into each other's files."""
    points = [
        *SearchSettings().points(),
        *parse_choice("parametric_softplus:10.000001,10.000002", field="x"),
    ]
    assert len({one.slug for one in points}) == len(points)


def test_resources_are_no_part_of_a_result_and_everything_else_is() -> None:
    base = config()
    other = dataclasses.replace(base, resources=ResourceSettings(train_workers=1, cpus_per_trial=2))
    assert other.semantic() == base.semantic()
    for section, changed in [
        ("threat_model", ThreatModel("linf", 4 / 255)),
        ("data", DataSettings(rows_per_shard=9)),
        ("model", ModelSettings(width=9)),
        ("training", TrainingSettings(epochs=9)),
        ("search", SearchSettings(reduction=3)),
        ("final", FinalSettings(seeds=(0,))),
        ("evaluation", EvaluationSettings(slots=9)),
    ]:
        assert content_hash(
            dataclasses.replace(base, **{section: changed}).semantic()
        ) != content_hash(base.semantic()), section


def test_a_search_trial_squeezes_the_whole_schedule_into_the_longest_rung() -> None:
    trial = config(search=SearchSettings(rungs=(2, 5))).trial_training()
    assert (trial.epochs, trial.validate_every) == (5, 5)
    assert dataclasses.replace(trial, epochs=20, validate_every=5) == TrainingSettings()


def test_the_final_iterate_rule_is_an_attack_of_its_own_and_off_by_default() -> None:
    assert [spec.name for spec in config().evaluation_attacks()] == ["pgd-200"]
    assert [(spec.name, spec.final_iterate) for spec in FULL.evaluation_attacks()] == [
        ("pgd-200", False),
        ("pgd-200-final", True),
    ]


def test_nested_settings_flatten_to_dotted_names() -> None:
    flat = flatten(to_json(FULL))
    assert (
        flat["training.learning_rate"] == 0.1 + 0.2
        and flat["final.seeds"] == [4, 7]
        and flat["recipe"] == "toy"
    )
    assert not any(isinstance(value, dict) for value in flat.values())
