"""The robustness card: evidence for a robust accuracy, with the verdict PASS or FLAG."""

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from sat_ray.attacks.spec import AttackSpec
from sat_ray.evaluation.card.checks import FLAG, PASS, judge
from sat_ray.evaluation.card.progress import OnProgress, reporting, silent
from sat_ray.evaluation.card.settings import CardSettings

if TYPE_CHECKING:  # the settings and the verdicts can be read without torch
    from sat_ray.attacks.base import Model
    from sat_ray.data.split import Arrays, Split

__all__ = ["FLAG", "PASS", "CardSettings", "robustness_card", "silent"]

MOST_ROWS = 256  # of a call
ROWS_STEP = 32
LARGEST_CALL = MOST_ROWS * 3 * 32 * 32  # pixels and channels of a call of more than ROWS_STEP rows
SMALL_IMAGE = 256  # pixels and channels: threads cost more than they save


def robustness_card(
    model: "Model",
    split: "Split | Arrays",
    *,
    attack: AttackSpec,
    settings: CardSettings | None = None,
    variants: Callable[[AttackSpec], Sequence[AttackSpec]] = lambda spec: [spec],
    seed: int = 0,
    slots: int | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure a model and return {"verdict": "PASS" or "FLAG", "reasons", "checks", "n", ...}.

    The result is JSON-ready; "ladder" and "curves" hold the evidence.
    model: [0, 1] pixels -> logits, in inference mode.
    split: images that the model was not trained on, a `Split` or a tuple (images, labels) of
    arrays: (N, C, H, W) uint8 and (N,) integers, with the image ids 0 to N - 1. At most
    `settings.images` of them are used.
    attack: the PGD whose robust accuracy is claimed; variants: the backward passes that each attack
    must be tried through.
    slots: rows of every call of the model, part of the numerical environment. None: as many as
    there are images, rounded up to a multiple of 32, at most 256 and fewer for large images; images
    of at most 256 values are then computed on one CPU thread.
    on_progress: called with the name of each part of the work when it begins, and the seconds since
    the card was begun. None: these are printed on stderr, a line each, once the work has taken 3
    seconds; `sat_ray.evaluation.card.silent` reports nothing.

    Cost: an image that survives everything takes about (attack.restarts + 4) * attack.steps + 1,500
    forward and backward passes and 5,000 forward passes (Square); a broken one takes fewer. So the
    time grows with the number of images. Fewer images than fit in one call take the time of one
    call, about 8,000 calls in all: half a minute for 60 images of 8 x 8 and a small network on one
    core. `CardSettings` with fewer images, cascade_steps, cascade_queries or restarts makes a
    smaller card.

    Raises ValueError on bad input (arrays of a wrong kind, a model in train mode, probabilities for
    logits, NaN, labels out of range).
    """
    from sat_ray.data.split import given_split
    from sat_ray.evaluation.card.evidence import measure
    from sat_ray.evaluation.engine.call_size import cpu_threads

    settings = settings or CardSettings()
    checked = given_split(split, field="split")
    if not len(checked):
        raise ValueError("split must have at least one image, got none")
    values = max(1, prod(checked.images.shape[1:]))
    one_thread = slots is None and values <= SMALL_IMAGE
    if slots is None:
        slots = _rows(min(len(checked), settings.images), values)
    with reporting(on_progress) as begin, cpu_threads(1 if one_thread else None):
        evidence = measure(
            model,
            checked,
            attack=attack,
            settings=settings,
            variants=variants,
            seed=seed,
            slots=slots,
            begin=begin,
        )
    return _judged(evidence)


def _judged(evidence: dict[str, Any]) -> dict[str, Any]:
    """Add the verdict, its reasons and the checks to the evidence."""
    checks = judge(evidence)
    failed = [check for check in checks if not check.passed]
    return {
        "verdict": FLAG if failed else PASS,
        "reasons": [f"{check.name}: {check.found}" for check in failed],
        "checks": [check.to_json() for check in checks],
        **evidence,
    }


def _rows(images: int, values: int) -> int:
    """Return the rows of a call: all images where they fit. values: of one image."""
    wanted = min(images, MOST_ROWS, LARGEST_CALL // values)
    return ROWS_STEP * max(1, -(-wanted // ROWS_STEP))
