"""Recipes for data that is not there: planned without it, and trained for two real steps on small archives in the official formats."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import cifar, imagenet, unpack

from pipelines.dry_run import describe
from pipelines.ladder import RUNGS, Rung
from pipelines.recipes import DEFAULT, PAPER_ACTIVATIONS, RECIPES
from sat_ray.activations import ACTIVATIONS
from sat_ray.cli import parse
from sat_ray.config import ResourceSettings, SweepConfig
from sat_ray.configuration import parse_choice
from sat_ray.data.shards import write_dataset
from sat_ray.data.sources import dataset_source
from sat_ray.jobs import train_and_commit
from sat_ray.plan import groups, planned_trials, training_job
from sat_ray.stages import Records
from sat_ray.storage import Storage
from sat_ray.units import TRAIN, Dataset

REAL = {"cifar10_resnet18": lambda: cifar("cifar10", per_batch=2)[0], "imagenet_resnet50": lambda: imagenet(per_class=3, val=3)[0]}
PLANNED = {  # epsilon, training attack, and passes of training: images, epochs, passes per image, 10 configurations x 3 seeds
    "cifar10_resnet18": ("8/255 (linf)", "PGD-10, step 2/255", 49_000 * 30 * 11 * 30),
    "imagenet_resnet50": ("4/255 (linf)", "PGD-1, step 4/255", 1_271_167 * 100 * 2 * 30),
}


@pytest.mark.parametrize("recipe", REAL)
def test_a_recipe_is_planned_without_its_data(recipe: str, tmp_path: Path) -> None:
    text = describe(parse([recipe, "--storage", str(tmp_path / "runs"), "--dry-run"], RECIPES, default=DEFAULT, about=""))
    epsilon, attack, passes = PLANNED[recipe]
    assert epsilon in text and attack in text and f"{passes / 1e6:.2f} million images" in text
    assert "nothing was touched" in text and not list(tmp_path.iterdir())


def test_the_study_trains_every_activation_of_the_registry_with_ten_seeds_and_searches_nothing(tmp_path: Path) -> None:
    study = RECIPES["study"]()
    configurations = study.search.configurations()
    assert sorted(one.activation for one in configurations) == sorted(ACTIVATIONS)
    assert all(len(group.members) == 1 for group in groups(configurations)) and planned_trials(study) == len(configurations)
    assert study.final.seeds == tuple(range(10))
    text = describe(parse(["study", "--storage", str(tmp_path / "runs"), "--dry-run"], RECIPES, default=DEFAULT, about=""))
    assert f"{len(ACTIVATIONS)} configurations x 10 seeds = {10 * len(ACTIVATIONS)}" in text


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_rung_of_the_ladder_is_the_imagenet_recipe_at_another_size(rung: Rung, tmp_path: Path) -> None:
    config = RECIPES[rung.name]()
    assert config.recipe == rung.name and config.model.name == rung.model and config.data.image_size == rung.pixels
    assert [one.name for one in config.search.configurations()] == ["relu", "silu"] and config.final.seeds == (0,)
    assert rung.published in (RECIPES[rung.name].__doc__ or "")
    text = describe(parse([rung.name, "--storage", str(tmp_path / "runs"), "--dry-run"], RECIPES, default=DEFAULT, about=""))
    assert f"{1_271_167 * 100 * 2 * 2 / 1e6:.2f} million images" in text and not list(tmp_path.iterdir())


def small(config: SweepConfig, path: Path) -> SweepConfig:
    """Shrink what takes time and nothing else: images, batches, epochs, steps of attacks; on one CPU."""
    short = {"epochs": 1, "warmup_epochs": 0, "validate_every": 1, "validation_steps": 4, "attack_steps": 1, "attack_step_size": None}
    training = dataclasses.replace(config.training, global_batch_size=4, batchnorm_group_size=4, **short)
    size = 32 if config.data.image_size else 0
    data = dataclasses.replace(config.data, path=str(path), image_size=size, rows_per_shard=16)
    evaluation = dataclasses.replace(config.evaluation, lanes=2)
    return dataclasses.replace(config, training=training, data=data, evaluation=evaluation, resources=ResourceSettings(train_workers=1))


@pytest.mark.parametrize("recipe", REAL)
def test_a_recipe_takes_real_steps_on_a_small_archive(recipe: str, tmp_path: Path) -> None:
    config = small(RECIPES[recipe](), unpack(REAL[recipe](), tmp_path / "downloads"))
    settings: Any = {"path": config.data.path, "storing": config.data.storing(), "rows_per_shard": config.data.rows_per_shard}
    write_dataset(dataset_source(config.data.dataset), Storage.at(tmp_path / "data"), **settings)
    dataset = Dataset.open(str(tmp_path / "data"))
    assert dataset is not None
    job = training_job(config, dataset, parse_choice("silu", field="x")[0], stage=TRAIN, seed=0, training=config.training)
    record = train_and_commit(job, Records(Storage.at(tmp_path / "runs")))
    history = record.payload["history"]
    assert dataset.manifest["splits"]["train"] == {"cifar10_resnet18": 9, "imagenet_resnet50": 8}[recipe]  # two steps of four
    assert len(history) == 1 and torch.tensor(history[0]["train/loss"]).isfinite()
    assert job.model.num_classes == len(dataset.manifest["class_names"]) and job.model.name == config.model.name


def test_the_papers_activations_are_those_of_its_figure_each_with_one_alpha() -> None:
    points = [one for text in PAPER_ACTIVATIONS for one in parse_choice(text, field="x")]
    assert [(one.activation, one.alpha) for one in points] == [
        ("relu", None), ("parametric_softplus", 10.0), ("softplus", None), ("smoothrelu_learned", None), ("gelu", None), ("elu", 1.0),
        ("silu", None),
    ]  # fmt: skip
    assert len(RECIPES["imagenet_resnet50"]().search.configurations()) == 7 + 3
