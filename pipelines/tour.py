"""The text of one image's journey: what each step takes and gives, what it decides, and where its source is."""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sat_ray
from pipelines.picture import difference, drawing, side_by_side
from sat_ray.activations import Activation, display_name
from sat_ray.attacks import PGD
from sat_ray.config import SweepConfig
from sat_ray.cycles import CycleDetector
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards import read_rows
from sat_ray.data.split import Split
from sat_ray.evaluation import OUTCOME_SCHEMA, evaluate
from sat_ray.journey import Attacked, Place, Point, Trained, attack_image, attacks_of, batch_with, craft, start_of, update
from sat_ray.lanes import NEVER, lane_logits, run_lanes
from sat_ray.losses import cross_entropy, margin
from sat_ray.models import Normalized, view
from sat_ray.models.injection import inject_activation
from sat_ray.randomness import Randomness
from sat_ray.threat import ThreatModel, as_255ths
from sat_ray.training import fit
from sat_ray.training_settings import TrainingSettings
from sat_ray.units import Dataset

WIDTH = 118
FIRST, AROUND = 4, 1
USES = {"train": "the sweep trains on it", "val": "the sweep chooses models with it", "test": "the sweep measures robust accuracy with it"}


def tell(config: SweepConfig, dataset: Dataset, place: Place, trained: Trained, *, trained_here: bool) -> Iterator[str]:
    """Yield the sections of the tour in the order in which things happen."""
    image = place.image
    crafted, batch = craft(trained, image), batch_with(dataset, image, size=trained.job.training.global_batch_size)
    runs = attack_image(trained.model, image, attacks_of(config, trained), seed=config.evaluation.seed, lanes=config.evaluation.lanes)
    sections: tuple[tuple[str, tuple[Callable[..., Any], ...], list[str]], ...] = (
        ("the image", (Split,), _image(dataset, image)),
        ("its split", (read_rows,), _split(dataset, place)),
        ("pixels", (to_pixels,), _pixels(image)),
        ("normalised", (Normalized,), _normalised(trained, image)),
        ("the model", (inject_activation, view), _model(trained, trained_here=trained_here)),
        ("the clean prediction", (lane_logits,), _clean(config, dataset, trained, image)),
        ("training: the random start", (ThreatModel.random_start, Randomness), _start(trained, image)),
        ("training: the inner maximization", (PGD,), _crafted(trained, image, crafted)),
        ("training: the outer minimization", (fit,), _update(trained, image, batch, crafted[-1])),
        *((f"evaluation: {_run_name(run)}", (run_lanes, CycleDetector), _attacked(config, image, run)) for run in runs),
        ("the outcome", (evaluate,), _outcome(runs, place)),
    )
    for number, (title, sources, lines) in enumerate(sections, start=1):
        head, where = f"── {number} {title} ", " ".join(_where(source) for source in sources)
        yield "\n".join([f"{head:─<{WIDTH - len(where) - 1}} {where}", *(f"   {line}".rstrip() for line in lines)])


def _where(part: Callable[..., Any]) -> str:
    """Return the file and line of a class or function."""
    source = inspect.unwrap(part)
    path = Path(inspect.getsourcefile(source) or "").relative_to(Path(sat_ray.__file__).parent.parent)
    return f"{path}:{inspect.getsourcelines(source)[1]}"


def about(values: Tensor) -> str:
    """Return shape, dtype and range of a tensor."""
    low, high = (float(value) for value in (values.min(), values.max()))
    return f"{tuple(values.shape)} {str(values.dtype).removeprefix('torch.')} in [{low:.4g}, {high:.4g}]"


def _para(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 3)


def _image(dataset: Dataset, image: Split) -> list[str]:
    name = dataset.manifest["class_names"][int(image.labels)]
    return [f"{about(image.images[0])}, label {int(image.labels)} (class {name!r})", "", *drawing(to_pixels(image.images)[0])]


def _split(dataset: Dataset, place: Place) -> list[str]:
    sizes = " · ".join(f"{split} {count}" for split, count in place.sizes.items())
    lines = [f"{sizes} images; this one is in {place.split}: {USES[place.split]}"]
    if place.rank is None:
        return [*lines, "the dataset came with this split"]
    key = f'sha256("{dataset.manifest["dataset"]}:{int(place.image.image_ids)}") = {place.digest[:12]}…'
    cut = place.sizes["test"] + place.sizes["val"]
    rule = f"of all {place.total} ids sorted by this hash, the first {place.sizes['test']} are test, those up to {cut} val, the rest train"
    return [*lines, *_para(f"{key} is number {place.rank + 1} in hash order; {rule}: fixed for ever, whatever the machine or the labels")]


def _pixels(image: Split) -> list[str]:
    return [f"uint8 / 255 -> {about(to_pixels(image.images))}", "every epsilon, step and distance below is measured here, in [0, 1] pixels"]


def _normalised(trained: Trained, image: Split) -> list[str]:
    model, x = trained.model, to_pixels(image.images)
    mean, std = (" ".join(f"{value:.4g}" for value in part.flatten().tolist()) for part in (model.mean, model.std))
    return [
        f"(x - {mean}) / {std} -> {about((x - model.mean) / model.std)}",
        "mean and std of the training split; it is the model's first layer, so attacks differentiate through it and stay in pixels",
    ]


def _model(trained: Trained, *, trained_here: bool) -> list[str]:
    model, spec = trained.model, trained.model.spec
    assert spec is not None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    injected = sum(isinstance(module, Activation) for module in model.modules())
    activation = display_name(trained.configuration.activation, trained.configuration.alpha)
    attacker = "the same" if trained.configuration.own_attacker else trained.configuration.attacker_activation
    return [
        f"{spec.name}, {parameters:,} parameters; {activation} in all {injected} places where it had a ReLU",
        f"trained {'here' if trained_here else 'before'}, weights of epoch {trained.epoch + 1}: {trained.uri}",
        f"the training attack differentiates through a view over the same weights, in inference mode; its activation: {attacker}",
    ]


def _clean(config: SweepConfig, dataset: Dataset, trained: Trained, image: Split) -> list[str]:
    lanes = config.evaluation.lanes
    logits = lane_logits(trained.model, image.images, image.image_ids, lanes=lanes, device=torch.device("cpu"))
    prediction, label = int(logits.argmax()), int(image.labels)
    verdict = "right: it will be attacked" if prediction == label else "a clean error: never attacked, and never robust"
    names = dataset.manifest["class_names"]
    shown = sorted(range(len(names)), key=lambda one: -float(logits[0, one]))[:10]
    return [
        f"one call of exactly {lanes} rows, this image repeated: another batch shape would round differently -> {about(logits)}",
        "  ".join(f"{names[one]}: {float(logits[0, one]):.2f}" for one in shown),
        f"prediction {prediction}, label {label}, margin {float(margin(logits, image.labels)):.4f}, "
        f"loss {float(cross_entropy(logits, image.labels)):.4f}: {verdict}",
    ]


def _start(trained: Trained, image: Split) -> list[str]:
    job, x = trained.job, to_pixels(image.images)
    start, ball = start_of(trained, image), job.threat_model
    noise = Randomness(job.seed, image.image_ids).uniform("start", x.shape[1:], step=trained.epoch).flatten()[:4].tolist()
    stream = f"(seed {job.seed}, image {int(image.image_ids)}, restart 0, purpose 'start', step = epoch {trained.epoch})"
    return [
        f"noise is a function of {stream}: {' '.join(f'{value:.4f}' for value in noise)} …",
        f"uniform in the {ball.norm} ball of {as_255ths(ball.epsilon)}, then clipped into the box -> {about(start)}, "
        f"distance {_length(float(ball.distance(start, x)))}",
    ]


def _crafted(trained: Trained, image: Split, points: Sequence[Point]) -> list[str]:
    training, ball = trained.job.training, trained.job.threat_model
    attack = training.attack(ball)
    x = to_pixels(image.images)
    with torch.no_grad():
        clean = float(cross_entropy(trained.attacker()(x), image.labels))
    along = "the sign of the loss's gradient" if ball.norm == "linf" else "the loss's gradient"
    return [
        f"PGD-{attack.steps}: a step of {as_255ths(attack.step_size)} along {along}, then back into ball and box",
        f"loss {clean:.4f} on the clean image -> " + " -> ".join(f"{point.loss:.4f}" for point in points) + " (start, then each step)",
        f"x_adv {about(points[-1].x_adv)}, distance {_length(points[-1].distance)}, predicted {points[-1].prediction}",
        *not_shown(trained.job.training),
    ]


def not_shown(training: TrainingSettings) -> list[str]:
    """Say where the recipe's inner maximization is another than the plain PGD of these two sections; nothing where it is not."""
    other = {
        f"TRADES ascends the KL divergence from the clean prediction, from noise of {training.trades_noise:g}": training.objective
        == "trades",
        f"Free moves the images along the gradients of {training.attack_replays} updates": training.attack_replays > 0,
        f"epsilon grows over the first {100 * training.epsilon_warmup:g} % of the epochs": training.epsilon_warmup > 0,
        f"alpha moves from {training.alpha_start:g} times its value": training.alpha_start != 1,
    }
    named = [text for text, applies in other.items() if applies]
    words = (
        "not shown here: in this recipe " + "; ".join(named) + ". Start and steps above are plain PGD; the update below is the recipe's own"
    )
    return _para(words) if named else []


def _update(trained: Trained, image: Split, batch: Split, crafted: Point) -> list[str]:
    done = update(trained, image, batch, crafted)
    return [
        f"one real update of a copy of the model, on this image and {done.images - 1} training images, all attacked as above",
        f"loss {done.loss:.4f}, {100 * done.adversarial_accuracy:.0f} % of them right, learning rate {done.learning_rate:.4g}",
        f"weights moved by {100 * done.moved:.2f} % of their length; this image's adversarial loss {done.before:.4f} -> {done.after:.4f}",
    ]


def _run_name(run: Attacked) -> str:
    return run.spec.name + (f", restart {run.row['restart']}" if run.spec.restarts > 1 else "")


def _attacked(config: SweepConfig, image: Split, run: Attacked) -> list[str]:
    if not run.points:
        return ["a clean error is not attacked: first_broken_step -2, 0 passes, not robust"]
    row, x = run.row, to_pixels(image.images)[0]
    shown = next((point for point in run.points if point.step == row["first_broken_step"]), min(run.points, key=lambda point: point.margin))
    pictures = {
        "clean": drawing(x),
        f"point {shown.step}": drawing(shown.x_adv),
        "change > ε/2": difference(shown.x_adv - x, epsilon=run.spec.threat_model.epsilon),
    }
    return [
        f"{run.spec}; noise from (seed {config.evaluation.seed}, image {row['image_id']}, restart {row['restart']}, 'start', step 0)",
        f"{'point':>7} {'loss':>9} {'margin':>9} {'predicted':>10} {'distance':>10}",
        *_table(run, worst=shown.step),
        *_para(_decision(run)),
        "",
        *side_by_side(pictures),
    ]


def _table(run: Attacked, *, worst: int) -> list[str]:
    """Return the points worth a line: the first ones, those around the worst, and the last."""
    last = run.points[-1].step
    wanted = {*range(FIRST), *range(worst - AROUND, worst + AROUND + 1), last}
    lines, skipped = [], False
    for point in run.points:
        if point.step in wanted:
            mark = "broken" if point.step == run.row["first_broken_step"] else "smallest margin" if point.step == worst else ""
            text = f"{point.step:>7} {point.loss:>9.4f} {point.margin:>9.4f} {point.prediction:>10} {_length(point.distance):>10}  {mark}"
            lines += [*(["      …"] if skipped else []), text.rstrip()]
        skipped = point.step not in wanted
    return lines


def _decision(run: Attacked) -> str:
    step, passes, planned = run.row["first_broken_step"], run.row["passes"], run.spec.steps + 1
    if run.spec.final_iterate:
        return f"only the last point counts: {'it holds' if step == NEVER else 'it is misclassified'}; {passes} passes"
    if step != NEVER:
        return (
            f"misclassified at point {step}{' (the start)' if step == 0 else ''}: broken, whatever comes later; "
            f"its lane retires after {passes} of {planned} passes and takes the next image"
        )
    if run.period:
        end = run.points[-1].step + 1
        return (
            f"point {end} equals point {end - run.period} in every bit, a cycle of {run.period}: nothing new can be visited, so its lane "
            f"retires unbroken after {passes} of {planned} passes"
        )
    return f"all {planned} points were visited and none is misclassified: it has survived"


def _outcome(runs: Sequence[Attacked], place: Place) -> list[str]:
    width = max(map(len, OUTCOME_SCHEMA.names))
    wide = [max(len(_value(value)) for value in run.row.values()) for run in runs]
    rows = [
        "  ".join([f"{name:<{width}}", *(f"{_value(run.row[name]):>{w}}" for run, w in zip(runs, wide, strict=True))])
        for name in OUTCOME_SCHEMA.names
    ]
    robust = all(run.row["robust"] for run in runs if not run.spec.final_iterate)
    verdict = "counts as robust" if robust else "does not count as robust"
    where = "" if place.split == "test" else f"; a sweep reports the test split alone, and this is a {place.split} image"
    return [*rows, f"-> it {verdict}{where}"]


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _length(distance: float) -> str:
    return f"{255 * distance:.1f}/255"
