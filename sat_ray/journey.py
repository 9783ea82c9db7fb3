"""One image's journey: what every step of the pipeline makes of it, computed by the code that the pipeline runs, in this process."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sat_ray.attacks import Attack, AttackSpec, State, make_attack
from sat_ray.attacks.base import Model
from sat_ray.checkpoint import load_model, read_description
from sat_ray.config import SweepConfig
from sat_ray.configuration import Configuration
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards import image_ids, read_rows
from sat_ray.data.split import SPLITS, Split
from sat_ray.evaluation import evaluate
from sat_ray.lanes import NEVER, run_lanes
from sat_ray.losses import cross_entropy, margin
from sat_ray.models import Normalized, settle_layout, view
from sat_ray.models.copying import copied
from sat_ray.plan import attacks_for, training_job
from sat_ray.randomness import Randomness
from sat_ray.storage import Storage
from sat_ray.threat import ThreatModel
from sat_ray.training import TrainingState, fit
from sat_ray.units import TRAIN, Dataset, TrainingJob


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an image is.

    image: a split of one; rank: its place in the hash order of all `total` images, None where the dataset came with splits of its own;
    digest: sha256 of "name:id".
    """

    image: Split
    split: str
    sizes: dict[str, int]
    rank: int | None
    digest: str

    @property
    def total(self) -> int:
        """Return the number of images in all splits."""
        return sum(self.sizes.values())


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model and what its checkpoint says. epoch: of its weights, counted from 0; job: how the recipe trains such a model."""

    model: Normalized
    uri: str
    configuration: Configuration
    epoch: int
    job: TrainingJob

    def attacker(self, model: nn.Module | None = None) -> nn.Module:
        """Return the view that the training attack differentiates through."""
        one = self.configuration
        return (
            view(model or self.model) if one.own_attacker else view(model or self.model, one.attacker_activation, alpha=one.attacker_alpha)
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point that an attack visited, as its step scored it. x_adv: (C, H, W); distance: norm of the perturbation, in [0, 1] pixels."""

    step: int
    x_adv: Tensor
    loss: float
    margin: float
    prediction: int
    distance: float

    @classmethod
    def of(cls, step: int, x_adv: Tensor, logits: Tensor, x: Tensor, y: Tensor, threat_model: ThreatModel) -> "Point":
        """Score one image: x_adv, x are (1, C, H, W), logits (1, K), y (1,)."""
        return cls(
            step=step,
            x_adv=x_adv[0].detach().clone(),
            loss=float(cross_entropy(logits, y)),
            margin=float(margin(logits, y)),
            prediction=int(logits.argmax(dim=1)),
            distance=float(threat_model.distance(x_adv, x)),
        )


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update of the weights.

    loss, adversarial_accuracy: of the batch, before it; moved: length of the change over that of the weights; before, after: this
    image's own loss on its adversarial image, in inference mode.
    """

    images: int
    loss: float
    adversarial_accuracy: float
    learning_rate: float
    moved: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What one run of an attack did.

    points: every point scored, none for a clean error; period: of the exact cycle that ended it, else 0; row: the outcome, as `evaluate`
    returns it.
    """

    spec: AttackSpec
    points: tuple[Point, ...]
    period: int
    row: dict[str, Any]


def find(dataset: Dataset, image_id: int) -> Place:
    """Return where an image is. ValueError names the allowed ids."""
    storage, name = Storage.at(dataset.uri), dataset.manifest["dataset"]
    ids = {split: image_ids(storage, split) for split in SPLITS}
    every = torch.cat(list(ids.values())).tolist()
    split = next((split for split in SPLITS if image_id in ids[split]), None)
    if split is None:
        raise ValueError(f"image id {image_id} is not in {name}; allowed: {min(every)} to {max(every)}")
    order = sorted(every, key=lambda one: _digest(name, one))
    hashed = set(order[: len(ids["test"])]) == set(ids["test"].tolist())
    return Place(
        image=read_rows(storage, split, torch.nonzero(ids[split] == image_id).flatten()),
        split=split,
        sizes={split: len(found) for split, found in ids.items()},
        rank=order.index(image_id) if hashed else None,
        digest=_digest(name, image_id).hex(),
    )


def batch_with(dataset: Dataset, image: Split, *, size: int) -> Split:
    """Return a batch of the image and the first other training images."""
    storage = Storage.at(dataset.uri)
    others = read_rows(storage, "train", torch.nonzero(image_ids(storage, "train") != image.image_ids).flatten()[: size - 1])
    return Split(*(torch.cat([getattr(part, name) for part in (image, others)]) for name in ("images", "labels", "image_ids")))


def _digest(name: str, image_id: int) -> bytes:
    return hashlib.sha256(f"{name}:{image_id}".encode()).digest()


def open_trained(uri: str, config: SweepConfig, dataset: Dataset) -> Trained:
    """Load a checkpoint as the evaluate stage does. ValueError where it was made for other images."""
    model = load_model(uri)
    about = read_description(Storage.at(uri))["about"]
    spec, shape, classes = model.spec, dataset.manifest["shape"], len(dataset.manifest["class_names"])
    assert spec is not None
    if (spec.in_channels, spec.num_classes) != (shape[0], classes):
        raise ValueError(
            f"checkpoint {uri} takes {spec.in_channels} channels and has {spec.num_classes} classes; "
            f"allowed for {dataset.manifest['dataset']}: {shape[0]} and {classes}"
        )
    settle_layout(model)
    given = about.get("configuration") or {"activation": spec.activation, "alpha": spec.alpha}
    configuration = Configuration.stored(given)
    seed = about.get("seed", config.search.seed)
    job = training_job(config, dataset, configuration, stage=TRAIN, seed=seed, training=config.training)
    epoch = about.get("epoch", config.training.epochs - 1)
    return Trained(model=model, uri=uri, configuration=configuration, epoch=epoch, job=job)


def start_of(trained: Trained, image: Split) -> Tensor:
    """Return the random start of the training attack on an image, (1, C, H, W) in [0, 1]."""
    x = to_pixels(image.images)
    rng = Randomness(trained.job.seed, image.image_ids)
    return trained.job.training.attack(trained.job.threat_model).start(x, image.labels, rng, step=trained.epoch).x_adv


@torch.no_grad()
def _score(model: Model, x_adv: Tensor, image: Split, threat_model: ThreatModel, *, step: int) -> Point:
    return Point.of(step, x_adv, model(x_adv).float(), to_pixels(image.images), image.labels, threat_model)


def craft(trained: Trained, image: Split) -> list[Point]:
    """Return the points of the training attack on an image, the start first and the training image last."""
    job, attacker = trained.job, trained.attacker()
    attack = job.training.attack(job.threat_model)
    state = attack.start(to_pixels(image.images), image.labels, Randomness(job.seed, image.image_ids), step=trained.epoch)
    points = [_score(attacker, state.x_adv, image, job.threat_model, step=0)]
    for step in range(1, attack.steps + 1):
        state = attack.step(attacker, state)
        points.append(_score(attacker, state.x_adv, image, job.threat_model, step=step))
    return points


def update(trained: Trained, image: Split, batch: Split, crafted: Point) -> Update:
    """Train a copy of the model for one update on a batch that holds the image, and return its figures. crafted: of that image."""
    job, epoch = trained.job, min(trained.epoch, trained.job.training.epochs - 1)
    model = copied(trained.model)
    own = None if trained.configuration.own_attacker else trained.configuration.attacker_activation
    reports = fit(
        model,
        batch,
        batch.take(slice(0, 2)),
        settings=replace(job.training, compile=False),  # not for one update
        threat_model=job.threat_model,
        attacker_activation=own,
        attacker_alpha=None if own is None else trained.configuration.attacker_alpha,
        seed=job.seed,
        state=TrainingState(epoch=epoch),
        until=epoch + 1,
        lanes=2,
    )
    (report,) = reports
    # where an average is kept, `fit` leaves that; the update is shown by the weights themselves
    model.load_state_dict(report.state.weights)
    x_adv = crafted.x_adv[None]
    return Update(
        images=len(batch),
        loss=report.metrics["train/loss"],
        adversarial_accuracy=report.metrics["train/adversarial_accuracy"],
        learning_rate=report.metrics["train/learning_rate"],
        moved=_moved(trained.model, model),
        before=_score(trained.attacker(), x_adv, image, job.threat_model, step=0).loss,
        after=_score(trained.attacker(model), x_adv, image, job.threat_model, step=0).loss,
    )


@torch.no_grad()
def _moved(before: nn.Module, after: nn.Module) -> float:
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    change, length = (sum(float(t.double().square().sum()) for t in parts) for parts in ([b - a for a, b in pairs], [a for a, _ in pairs]))
    return float((change / length) ** 0.5)


class _Watched:
    """An attack that writes down what its steps see in lane 0, where a lone image is."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.points: list[Point] = []
        self.last: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)

    def step(self, model: Model, state: State) -> State:
        """Step, and keep the point that was scored and the one that it led to."""
        after = self.attack.step(model, state)
        assert after.logits is not None
        self.points.append(
            Point.of(int(state.step[0]), state.x_adv[:1], after.logits[:1], state.x[:1], state.y[:1], self.attack.threat_model)
        )
        self.last = after.x_adv[0].clone()
        return after

    @property
    def period(self) -> int:
        """Return the length of the cycle that the last move closed, 0 where it led to a new point."""
        equal = [point.step for point in self.points if self.last is not None and torch.equal(point.x_adv, self.last)]
        return self.points[-1].step + 1 - equal[-1] if equal else 0


def attack_image(model: nn.Module, image: Split, specs: Sequence[AttackSpec], *, seed: int, lanes: int) -> list[Attacked]:
    """Attack one image as the evaluate stage does and return every run: the row from `evaluate`, the points from the lanes it runs on."""
    table = evaluate(model, image.images, image.labels, image.image_ids, attacks=specs, seed=seed, lanes=lanes)
    by_name = {spec.name: spec for spec in specs}
    return [_watch(model, image, by_name[row["attack"]], row, seed=seed, lanes=lanes) for row in table.to_pylist()]


def _watch(model: nn.Module, image: Split, spec: AttackSpec, row: dict[str, Any], *, seed: int, lanes: int) -> Attacked:
    if row["passes"] == 0:
        return Attacked(spec=spec, points=(), period=0, row=row)
    watched = _Watched(make_attack(spec))
    attacked = model if spec.attacker_activation is None else view(model, spec.attacker_activation, alpha=spec.attacker_alpha)
    rng = Randomness(seed, image.image_ids, row["restart"])
    device = next(model.parameters()).device
    verdict = run_lanes(
        attacked,
        cast(Attack, watched),
        image.images,
        image.labels,
        rng,
        lanes=lanes,
        device=device,
        final_iterate=spec.final_iterate,
    )
    assert int(verdict.first_broken_step) == row["first_broken_step"] and int(verdict.passes) == row["passes"] == len(watched.points)
    early = row["first_broken_step"] == NEVER and watched.points[-1].step < spec.steps
    return Attacked(spec=spec, points=tuple(watched.points), period=watched.period if early else 0, row=row)


def attacks_of(config: SweepConfig, trained: Trained) -> tuple[AttackSpec, ...]:
    """Return the attacks that the evaluate stage would use on a model."""
    return attacks_for(config, trained.configuration)
