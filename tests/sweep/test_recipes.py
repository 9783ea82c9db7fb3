"""Recipes: planned without their data, and each trained for two real steps on thin networks and
small archives in the official formats.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import cifar, idx_files, imagenet, unpack
from sweeps import parsed
from thin_networks import thin_networks
from torch import Tensor

from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.attacks import PGD
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.split import Split
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.models import model_from_spec
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, ResourceSettings, SweepConfig
from sat_ray.sweep.execute.inputs import split_of
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.trainings import training_task
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.recipes.imagenet_ladder import RUNGS, Rung
from sat_ray.sweep.recipes.parts import PAPER_ACTIVATIONS
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint, parse_choice
from sat_ray.sweep.tasks import TRAIN, Dataset, TrainingTask
from sat_ray.training.loop import RunOptions, TrainingSettings, TrainingState, fit
from sat_ray.training.optimization.schedules import learning_rate_factor

ARCHIVES = {
    "cifar10": lambda: cifar("cifar10", per_batch=2)[0],
    "fashion_mnist": lambda: idx_files(train=24, test=10)[0],
    "imagenet": lambda: imagenet(per_class=7, val=3)[0],
}
REAL = (
    *("fashion_mnist", "fashion_mnist_resnet18"),
    *("cifar10_resnet18", "cifar10_wrn28_10_extra", "imagenet_resnet50"),
    *("imagenet_convnext_tiny", "imagenet_vit_small"),
)
# epsilon, training attack, and passes of training: images, epochs, passes per image, finalists x
# seeds
PLANNED = {
    "fashion_mnist": ("25.5/255 (linf)", "PGD-2, step 12.75/255", 55_000 * 4 * 3 * 25),
    "fashion_mnist_resnet18": ("25.5/255 (linf)", "PGD-3, step 12.75/255", 55_000 * 10 * 4 * 15),
    "cifar10_resnet18": ("8/255 (linf)", "PGD-10, step 2/255", 49_000 * 30 * 11 * 30),
    "cifar10_wrn28_10_extra": (
        "8/255 (linf)",
        "PGD-10, on the KL divergence of TRADES (beta 5), step 2/255",
        49_000 * 128 // 38 * 120 * 12 * 6,  # 38 images of a group of 128 are CIFAR-10's
    ),
    "imagenet_resnet50": ("4/255 (linf)", "PGD-1, step 4/255", 1_271_167 * 100 * 2 * 30),
    "imagenet_convnext_tiny": ("4/255 (linf)", "PGD-2, step 3/255", 1_271_167 * 50 * 3 * 3),
    "imagenet_vit_small": ("4/255 (linf)", "PGD-2, step 3/255", 1_271_167 * 50 * 3 * 3),
}


def planned(recipe: str, folder: Path) -> str:
    """Return the dry run of a recipe, which touches nothing."""
    text = describe(parsed(recipe, "--storage", str(folder / "runs"), "--dry-run"))
    assert "nothing was touched" in text and not list(folder.iterdir())
    return text


@pytest.mark.parametrize("recipe", REAL)
def test_a_recipe_is_planned_without_its_data(recipe: str, tmp_path: Path) -> None:
    text = planned(recipe, tmp_path)
    epsilon, attack, passes = PLANNED[recipe]
    assert epsilon in text and attack in text and f"{passes / 1e6:.2f} million images" in text


@pytest.mark.parametrize(
    "recipe", ["digits", "digits_smoke"]
)  # the others have dry runs of their own here
def test_the_plan_of_a_recipe_on_digits_touches_nothing(recipe: str, tmp_path: Path) -> None:
    attack = {"digits": "PGD-3, step 12/255", "digits_smoke": "PGD-1, step 16/255"}[recipe]
    assert attack in planned(recipe, tmp_path)


def test_the_study_has_every_smooth_activation_at_its_validated_alpha_with_ten_seeds(
    tmp_path: Path,
) -> None:
    study = RECIPES["study"]()
    families = {one.activation for one in study.search.points()}
    assert families == set(ACTIVATIONS) - {
        "softplus",
        "relu_smooth_backward",
    }  # softplus is parametric_softplus at 1
    assert study.final.seeds == tuple(range(10))
    assert study.search.rungs == (study.training.epochs,)  # alphas are compared at full length
    models = f"{len(families)} configurations x 10 seeds = {10 * len(families)}"
    assert models in planned("study", tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_compares_alphas_before_half_of_a_trial(recipe: str) -> None:
    rungs = RECIPES[recipe]().search.rungs
    assert rungs[0] >= rungs[-1] / 2


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_rung_of_the_ladder_is_the_imagenet_recipe_at_another_size(
    rung: Rung, tmp_path: Path
) -> None:
    config = RECIPES[rung.name]()
    assert (
        config.recipe == rung.name
        and config.model.name == rung.model
        and config.data.image_size == rung.pixels
    )
    assert [one.name for one in config.search.points()] == [
        "relu",
        "silu",
    ] and config.final.seeds == (0,)
    assert rung.published in (RECIPES[rung.name].__doc__ or "")
    passes = f"{1_271_167 * 100 * 2 * 2 / 1e6:.2f} million images"
    assert passes in planned(rung.name, tmp_path)


# of the training's settings; all others stay the recipe's
SHRUNK = {"global_batch_size", "batchnorm_group_size", "validation_steps", "learning_rate"}


def small(config: SweepConfig) -> SweepConfig:
    """Shrink what takes time and does not train: images, BatchNorm groups and their number, steps
    of the validation; on one CPU, without extra images.

    The learning rate shrinks with the root of the batch: at that of hundreds of images, eight drive
    some networks to infinity in two steps.
    """
    whole = config.training.global_batch_size
    # the small archive of CIFAR-10 has images for two steps of one group
    groups = 1 if config.data.dataset == "cifar10" else 2
    images = 4 * min(groups, whole // config.training.batchnorm_group_size)
    small = {"global_batch_size": images, "batchnorm_group_size": 4, "validation_steps": 4}
    training = dataclasses.replace(
        config.training,
        **small,
        learning_rate=config.training.learning_rate * (images / whole) ** 0.5,
    )
    data = dataclasses.replace(
        config.data,
        image_size=32 if config.data.image_size else 0,
        rows_per_shard=64,
        extra="",
        extra_share=0.0,
    )
    evaluation = dataclasses.replace(config.evaluation, slots=2)
    return dataclasses.replace(
        config,
        training=training,
        data=data,
        evaluation=evaluation,
        resources=ResourceSettings(train_workers=1),
    )


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks be thin."""
    thin_networks(monkeypatch)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DataSettings], Dataset]:
    """Return what prepares a dataset from its small archive, each once."""

    @functools.cache
    def prepare(data: DataSettings) -> Dataset:
        folder = tmp_path_factory.mktemp(data.dataset)
        path = (
            unpack(ARCHIVES[data.dataset](), folder / "downloads")
            if data.dataset in ARCHIVES
            else ""
        )
        settings: dict[str, Any] = {
            "path": str(path),
            "storing": data.storing(),
            "rows_per_shard": data.rows_per_shard,
            "enlarged_share": data.enlarged_share,
        }
        write_dataset(dataset_source(data.dataset), Storage.at(folder / "data"), **settings)
        dataset = Dataset.open(str(folder / "data"))
        assert dataset is not None
        return dataset

    return prepare


def one_of_each_kind(config: SweepConfig) -> list[SearchPoint]:
    """Return the search's first activation without alpha, with alpha, with a learned alpha,
    and its first pair; silu is left out.
    """
    found: dict[object, SearchPoint] = {}
    for one in config.search.points():
        if one.activation != "silu":
            found.setdefault(
                (one.alpha is None, ACTIVATIONS[one.activation].learned)
                if one.own_attacker
                else "pair",
                one,
            )
    return list(found.values())


EVERY_KIND = [
    pytest.param(name, one, id=f"{name}-{one.slug}")
    for name in RECIPES
    for one in one_of_each_kind(RECIPES[name]())
]


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(("recipe", "configuration"), EVERY_KIND)
def test_a_recipe_takes_two_real_steps_with_its_own_settings(
    recipe: str,
    configuration: SearchPoint,
    prepared: Callable[[DataSettings], Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, config = RECIPES[recipe](), small(RECIPES[recipe]())
    task = training_task(
        config, prepared(config.data), configuration, stage=TRAIN, seed=0, training=config.training
    )
    assert (
        differing(task.training, whole.training) <= SHRUNK
        and task.threat_model == whole.threat_model
    )
    crafted, run = list[PGD](), PGD.run
    monkeypatch.setattr(
        PGD, "run", lambda self, *given, **named: crafted.append(self) or run(self, *given, **named)
    )
    start, states = two_steps(task)
    assert [(state.epoch, state.step) for state in states] == [(0, 1), (0, 2), (1, 0)]
    assert_updates(start, *states)
    if whole.training.objective == "cross_entropy":  # TRADES climbs by itself
        assert crafted == [whole.training.attack(whole.threat_model)] * 2 * (
            task.training.global_batch_size // 4
        )
    factor = learning_rate_factor(
        0.5,
        schedule=whole.training.schedule,
        epochs=whole.training.epochs,
        warmup_epochs=whole.training.warmup_epochs,
    )
    (row,) = states[-1].history
    assert (
        row["train/learning_rate"] == task.training.learning_rate * factor > 0
        and torch.tensor(row["train/loss"]).isfinite()
    )


def differing(one: TrainingSettings, other: TrainingSettings) -> set[str]:
    """Name the settings in which two trainings differ."""
    return {
        field.name
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    }


def two_steps(task: TrainingTask) -> tuple[dict[str, Tensor], list[TrainingState]]:
    """Train a task on the images of two updates.

    Returns its first parameters, and its state after each step and after the epoch.
    """
    train, val = (
        split_of(task.dataset.uri, split, task.dataset.hash) for split in ("train", "val")
    )
    train, val = (
        train.take(slice(0, 2 * task.training.global_batch_size)),
        val.take(slice(0, 4)),
    )
    if not task.model.image_size:  # networks of timm are built for one size
        train, val = corners(train), corners(val)
    assert len(train) == 2 * task.training.global_batch_size
    model, taken = model_from_spec(task.model, seed=task.seed), list[TrainingState]()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    one, settings = (
        task.configuration,
        dict[str, Any](settings=task.training, threat_model=task.threat_model, seed=task.seed),
    )
    if not one.own_attacker:
        settings |= {
            "attacker_activation": one.attacker_activation,
            "attacker_alpha": one.attacker_alpha,
        }
    options = RunOptions(
        slots=task.slots,
        until=1,
        checkpoint_every=1,
        on_checkpoint=lambda state: taken.append(state.snapshot()),
    )
    for report in fit(model, train, val, **settings, options=options):
        taken.append(report.state)
    return start, taken


def corners(split: Split) -> Split:
    """Return the upper left corners of images, 16 x 16 at most."""
    return dataclasses.replace(split, images=split.images[..., :16, :16].contiguous())


def assert_updates(
    start: dict[str, Tensor], first: TrainingState, second: TrainingState, last: TrainingState
) -> None:
    """Assert that both updates moved the weights by finite amounts and were counted, and that the
    epoch ends with the second.
    """
    one, two = first.weights, second.weights
    kinds = {name.partition("/")[0] for name in first.optimizer}
    assert kinds in ({"momentum_buffer"}, {"exp_avg", "exp_avg_sq", "step"})
    buffers = {f"{kind}/{name}" for kind in kinds for name in start}
    assert first.optimizer.keys() == second.optimizer.keys() == buffers
    assert all(
        bool(tensor.isfinite().all())
        for state in (first, second)
        for tensor in (*state.weights.values(), *state.optimizer.values())
    )
    assert all(
        not torch.equal(tensor, two[name]) for name, tensor in start.items() if tensor.dim() >= 2
    )
    bias = next(reversed(start))  # the classifier's: it does not decay, so a gradient has moved it
    assert (
        start[bias].dim() == 1
        and not torch.equal(start[bias], one[bias])
        and not torch.equal(one[bias], two[bias])
    )
    betas = [name for name in start if name.endswith(".beta")]
    assert not betas or any(not torch.equal(start[name], two[name]) for name in betas)
    counters = {name for name in one if name.endswith("num_batches_tracked")}
    for count, weights in enumerate((one, two), start=1):
        assert all(int(weights[name]) == count for name in counters)
    assert last.weights.keys() == two.keys() and all(
        torch.equal(tensor, two[name]) for name, tensor in last.weights.items()
    )


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("recipe", REAL)
def test_a_recipe_is_trained_and_committed_from_a_small_archive(
    recipe: str, prepared: Callable[[DataSettings], Dataset], tmp_path: Path
) -> None:
    config = small(RECIPES[recipe]())
    dataset = prepared(config.data)
    task = training_task(
        config,
        dataset,
        parse_choice("silu", field="x")[0],
        stage=TRAIN,
        seed=0,
        training=config.training,
    ).at(1)
    record = train_and_commit(task, Records(Storage.at(tmp_path / "runs")))
    history = record.payload["history"]
    assert dataset.manifest["splits"]["train"] // config.training.global_batch_size == 2
    assert len(history) == 1 and torch.tensor(history[0]["train/loss"]).isfinite()
    assert (
        task.model.num_classes == len(dataset.manifest["class_names"])
        and task.model.name == config.model.name
    )


def test_the_papers_activations_are_those_of_its_figure_each_with_one_alpha() -> None:
    points = [one for text in PAPER_ACTIVATIONS for one in parse_choice(text, field="x")]
    assert [(one.activation, one.alpha) for one in points] == [
        ("relu", None), ("parametric_softplus", 10.0), ("softplus", None),
        ("smoothrelu_learned", None), ("gelu", 1.0), ("elu", 1.0),
        ("silu", 1.0),
    ]  # fmt: skip
    assert len(RECIPES["imagenet_resnet50"]().search.points()) == 7 + 3
