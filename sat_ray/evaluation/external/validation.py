"""Checks of an external model before any worker starts, on the first images, in a few model calls.

Output: finite logits (N, K), the same each time, and the same whatever the other images of the call
are; otherwise the verdict would depend on how the images are cut into shards. Input: not changed.
Gradient: exists and is finite; where it is exactly 0, images are counted, because an attack that
follows it moves nothing there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sat_ray.attacks import AttackSpec, InfeasiblePointError, make_attack
from sat_ray.attacks.base import Attack, Model, State, require_feasible, require_inference_mode
from sat_ray.attacks.losses import likeliest_others
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.finite import gradient_error, is_finite, require_finite
from sat_ray.evaluation.engine.padding import call_rows, pad
from sat_ray.evaluation.engine.run_attack import slot_logits
from sat_ray.evaluation.inputs import (
    attacker_view,
    check_classes,
    check_logits,
    device_of,
)
from sat_ray.models.copying import copied
from sat_ray.models.pt2.load import Exported
from sat_ray.models.user_defined import (
    other_dtype,
    require_same_again,
    require_same_alone,
    require_same_moved,
)
from sat_ray.utils.import_string import first_line
from sat_ray.utils.precision import exact_float32
from sat_ray.utils.randomness import Randomness

TRIED_STEPS = 2  # of an attack: three points show the gradient, and cost three passes


@exact_float32()
@torch.no_grad()
def try_model(
    model: nn.Module, some: Split, *, slots: int, expected: int | None, what: str
) -> Tensor:
    """Run a model on at most `slots` images and return its logits (N, K) float32 on the CPU.

    expected: classes of the dataset, None where they are not known; what: the model's name for
    messages. Raises ValueError in one line for a model in train mode, of a fixed other batch size,
    for other images, whose output is not finite logits of at least 2 classes, or that gives other
    logits the second time or beside other images.
    """
    require_inference_mode(model)
    if isinstance(model, Exported) and model.batch_size not in (None, slots):
        raise ValueError(
            f"model {what} was exported for exactly {model.batch_size} images a call; "
            f"give --slots {model.batch_size}"
        )
    some = some.take(slice(0, slots))
    what = f"model {what}"
    x = to_pixels(pad(some.images.to(device_of(model)), call_rows(slots)))
    logits = _forward(model, x, what=what)
    require_finite(logits[: len(some)], some.image_ids)
    if expected not in (None, logits.shape[1]):
        raise ValueError(
            f"{what} has {logits.shape[1]} classes, the dataset {expected}; "
            "they must be the same classes in the same order"
        )
    require_same_again(logits, _forward(model, x, what=what), what=what)
    moved = _forward(model, x.roll(1, dims=0), what=what).roll(-1, dims=0)
    require_same_moved(moved, logits, what=what)
    kept = len(x) // 2
    beside_others = _forward(model, torch.cat([x[:kept], 1 - x[kept:]]), what=what)
    require_same_alone(logits[:kept], beside_others[:kept], what=what)
    return logits[: len(some)].cpu()


def _forward(model: Model, x: Tensor, *, what: str) -> Tensor:
    """Return the logits of a whole call, (L, K) float32.

    Raises ValueError where the output is no logits, or where the model changed x.
    """
    given = x.clone()
    try:
        logits = model(x)
    except Exception as error:
        hint = other_dtype(model) if isinstance(model, nn.Module) else ""
        if not hint and x.shape[1] == 1:
            hint = "; if it takes colour images, store the images as RGB"
        raise ValueError(
            f"{what} cannot take float32 images of shape {tuple(x.shape)} "
            f"({type(error).__name__}: {first_line(error)}){hint}"
        ) from None
    wanted = f"{what} must return one tensor of (N, K) logits, K >= 2 classes"
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{wanted}, got a {type(logits).__name__}; "
            "wrap the model in a module whose forward returns the logits alone"
        )
    if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(f"{wanted}, got shape {tuple(logits.shape)} for {len(x)} images")
    if logits.is_complex():
        raise ValueError(f"{wanted}, of real numbers, got {logits.dtype}")
    if not torch.equal(given, x):
        raise ValueError(
            f"{what} changes its input images; "
            "use no operation in place (x.sub_, x -= ...) on its input"
        )
    return logits.float()


@contextmanager
def naming_model(what: str) -> Iterator[None]:
    """Turn what a model raises during the work into a ValueError that names the model.

    Errors with messages of their own pass unchanged. An external model runs its authors' code, so
    they are the first to look at any other error.
    """
    try:
        yield
    except (
        ValueError,
        OSError,
        ArithmeticError,
        AssertionError,
        InfeasiblePointError,
        MemoryError,
        torch.OutOfMemoryError,
    ):
        raise
    except Exception as error:
        raise ValueError(
            f"model {what} raised {type(error).__name__} on some images: {first_line(error)} "
            "(SAT_RAY_TRACEBACK=1 shows where); correct it and run the same command again"
        ) from error


def check_labels(
    labels: Tensor, image_ids: Callable[[], Tensor], *, classes: int, what: str
) -> None:
    """Raise ValueError unless every label is a class of the model.

    labels: (N,) int64; image_ids: reads theirs, for the message alone; what: the name of the images
    for messages.
    """
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        found = f"image id {int(image_ids()[first])} has {int(labels[first])}"
        raise ValueError(
            f"{what} has labels in [{int(labels.min())}, {int(labels.max())}] ({found}) "
            f"but the model has {classes} classes; labels must be from 0 to {classes - 1}"
        )


@dataclass(frozen=True)
class ZeroGradients:
    """The number of images for which an attack's gradient was exactly 0 at every point tried.

    tried: images that the model classifies correctly.
    """

    images: int
    tried: int

    def __str__(self) -> str:
        """Return it in one line; "" where there are none."""
        if not self.images:
            return ""
        return (
            f"{self.images} of {self.tried} images tried have a gradient of exactly 0: "
            "such an attack moves nothing there; make the card (--card), or try --attack square"
        )


@exact_float32()
def try_attack(
    model: nn.Module, some: Split, clean: Tensor, attack: AttackSpec, *, slots: int, what: str
) -> ZeroGradients:
    """Take a few steps of an attack on at most `slots` images, before any worker starts.

    clean: (N, K) logits of the first images, from `try_model`. Raises ValueError where the model
    has no gradient, a NaN one, or fails, InfeasiblePointError if the attack leaves its threat
    model.
    """
    check_logits(clean, some.labels[: len(clean)])
    check_classes(attack, clean.shape[1])
    some = some.take(slice(0, len(clean)))
    state = _start(some, clean, attack, rows=call_rows(slots), device=device_of(model))
    stepper = make_attack(shortened(attack))
    viewed = attacker_view(model, attack)
    still = torch.full((len(some),), stepper.differentiates)
    for _ in range(stepper.steps + 1):
        before = state
        state = _step(stepper, viewed, before, what=what)
        assert state.logits is not None and state.zero_share is not None
        _require_finite_step(state.logits, state.x_adv, some, what=what)
        require_feasible(state.x_adv, before.x, attack.threat_model)
        still &= (state.zero_share[: len(some)] == 1).cpu()
    right = clean.argmax(dim=1) == some.labels
    return ZeroGradients(int((still & right).sum()), int(right.sum()))


@exact_float32()
def try_more(
    model: nn.Module, sample: Split, attack: AttackSpec, *, slots: int, what: str
) -> Tensor:
    """Take two points from every clean image of a sample; return its clean logits, (N, K) float32.

    sample: images from all over the split, where the first ones may be of one class. Raises
    ValueError where logits or a gradient are not finite.
    """
    device = device_of(model)
    spec = shortened(attack)
    if spec.algorithm == "square":
        return slot_logits(model, sample.images, sample.image_ids, slots=slots, device=device)
    if spec.algorithm == "fab":  # has no untargeted form
        spec = replace(spec, algorithm="apgd")
    stepper = make_attack(replace(spec, targets=0, random_start=False, name=""))
    viewed = attacker_view(model, attack)
    found = []
    for first in range(0, len(sample), slots):
        some = sample.take(slice(first, first + slots))
        given = (some.images, some.labels, some.image_ids)
        x, y, ids = (pad(values.to(device), call_rows(slots)) for values in given)
        state = stepper.start(to_pixels(x), y, Randomness(0, ids))
        for point in range(2):
            state = _step(stepper, viewed, state, what=what)
            assert state.logits is not None
            _require_finite_step(state.logits, state.x_adv, some, what=what)
            if point == 0:
                found.append(state.logits[: len(some)].cpu())
    return torch.cat(found)


def _require_finite_step(logits: Tensor, moved: Tensor, some: Split, *, what: str) -> None:
    """Raise ValueError where logits, or the points that the gradient led to, are not finite."""
    require_finite(logits[: len(some)], some.image_ids)
    lost = ~is_finite(moved[: len(some)])
    if bool(lost.any()):
        raise gradient_error(f"model {what}", some.image_ids[lost].tolist()[:5])


def check_copyable(model: nn.Module, attack: AttackSpec, *, what: str) -> None:
    """Raise ValueError, in one line, where an attack needs a surrogate that cannot be made."""
    if attack.gradient != "float32":
        copied(model, what=f"model {what}")


def shortened(attack: AttackSpec) -> AttackSpec:
    """Return an attack of the same kind with few steps, one start and float32 gradients."""
    steps = min(attack.steps, TRIED_STEPS)
    size = attack.step_size
    if size is not None:
        size = max(size, attack.threat_model.epsilon / steps)
    return replace(
        attack,
        steps=steps,
        step_size=size,
        restarts=1,
        targets=min(attack.targets, 1),
        gradient="float32",
        name="",
    )


def _start(
    some: Split, clean: Tensor, attack: AttackSpec, *, rows: int, device: torch.device
) -> State:
    """Place images at point 0 of an attack, in a call of `rows` rows.

    A targeted attack moves towards the likeliest other class.
    """
    given = (some.images, some.labels, some.image_ids)
    x, y, ids = (pad(values.to(device), rows) for values in given)
    target = None
    if attack.targets:
        target = pad(likeliest_others(clean, some.labels)[:, 0].to(device), rows)
    return make_attack(shortened(attack)).start(to_pixels(x), y, Randomness(0, ids), target=target)


def _step(stepper: Attack, model: Model, state: State, *, what: str) -> State:
    """Take one step; what the model raises becomes a ValueError in one line."""
    try:
        return stepper.step(model, state)
    except (ValueError, InfeasiblePointError):
        raise
    except Exception as error:
        raise ValueError(
            f"model {what} raised {type(error).__name__} when its gradient was computed: "
            f"{first_line(error)}; use a differentiable model, or the attack square"
        ) from None
