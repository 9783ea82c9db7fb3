"""Exact robust accuracy: every image, every visited point, one row per (image, attack, restart).

An image is broken when any visited feasible point is misclassified, the start and the last point included: k steps score k + 1 points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, make_attack
from sat_ray.attacks.base import Model, require_inference_mode
from sat_ray.attacks.losses import margin
from sat_ray.attacks.spec import FINAL_SUFFIX
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.run_attack import run_slots, slot_logits
from sat_ray.evaluation.engine.verdicts import by_run
from sat_ray.evaluation.inputs import (
    attacker_view,
    check_classes,
    check_images,
    check_logits,
    device_of,
    likeliest_others,
)
from sat_ray.evaluation.low_precision.calibration import Calibration, calibrate, control_rows
from sat_ray.evaluation.low_precision.surrogate import fast_copy, flies_again
from sat_ray.evaluation.low_precision.verification import run_slots_fast
from sat_ray.evaluation.outcomes import (
    OUTCOME_SCHEMA,
    SORT_ORDER,
    clean_error_rows,
    outcome_rows,
    robust_image_ids,
)
from sat_ray.utils.precision import exact_float32
from sat_ray.utils.randomness import Randomness


@exact_float32()
def evaluate(
    model: Model,
    images_uint8: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int],
    image_ids: Tensor | np.ndarray | Sequence[int],
    *,
    attacks: Sequence[AttackSpec],
    seed: int = 0,
    slots: int = 32,
    cascade: bool = False,
    calibrations: Mapping[str, Calibration] | None = None,
) -> pa.Table:
    """Attack every image with every attack and return the outcomes, sorted by attack, restart and image id.

    model: [0, 1] pixels -> logits, in inference mode; images_uint8: (N, C, H, W) uint8; labels: (N,) in [0, K); image_ids: (N,) unique;
    slots: rows of every model call, part of the numerical environment (multiples of 32 serve every number of features, see docs/explanation/evaluation-engine.md);
    cascade: give each attack only what survived those before it, instead of every image;
    calibrations: of every attack whose gradient is not float32, by its name (`calibrate_attacks`);
    None: measured here, on at most
    `sat_ray.evaluation.low_precision.calibration.CONTROL_IMAGES` of the given images, drawn by the seed. Pass one where
    parts of a set are evaluated one by one:
    the verdicts depend on it.
    Clean errors are not attacked (but for final-iterate attacks, whose rule scores the last point alone); restart r has rows for the
    images that survived the restarts before it (of a targeted attack: every target is a restart).
    Raises ValueError on bad input, InfeasiblePointError if an attack leaves its threat model.
    """
    images, y, ids = check_images(images_uint8, labels, image_ids, slots=slots)
    require_inference_mode(model)
    if not attacks or len({spec.name for spec in attacks}) != len(attacks):
        raise ValueError(
            f"attacks are {[spec.name for spec in attacks]}; allowed: at least one, with different names"
        )
    if len(images) == 0:
        return OUTCOME_SCHEMA.empty_table()
    device = device_of(model)
    clean = slot_logits(model, images, ids, slots=slots, device=device)
    check_logits(clean, y)
    for spec in attacks:
        check_classes(spec, clean.shape[1])
    if calibrations is None:
        given = Split(images, y, ids)
        calibrations = _calibrated(model, given, attacks=attacks, seed=seed, slots=slots)
    tables: list[pa.Table] = []
    alive = torch.ones_like(y, dtype=torch.bool)
    where: dict[str, Any] = {"seed": seed, "slots": slots, "device": device}
    for spec in attacks:
        rows, bound = torch.nonzero(alive).flatten(), _bound(spec, calibrations)
        tables.append(
            _one_attack(
                model,
                images[rows],
                y[rows],
                ids[rows],
                clean[rows],
                spec=spec,
                bound=bound,
                **where,
            )
        )
        if cascade and not spec.final_iterate:
            alive = torch.isin(
                ids, torch.tensor(sorted(robust_image_ids(tables[-1])), dtype=torch.int64)
            )
    return pa.concat_tables(tables).sort_by(SORT_ORDER)


def counted_robust_ids(table: pa.Table) -> set[int]:
    """Return the same without final-iterate attacks, which are no part of a robust accuracy (`sat_ray.report.leaderboard.summary`)."""
    counted = pc.invert(pc.ends_with(table["attack"], FINAL_SUFFIX))
    return robust_image_ids(table.filter(counted))


@exact_float32()
def calibrate_attacks(
    model: Model, control: Split, *, attacks: Sequence[AttackSpec], seed: int = 0, slots: int = 32
) -> dict[str, Calibration]:
    """Measure on control images, for every attack on a fast copy, where float32 must look again; by name of the attack.

    control: some images of the split that will be attacked
    (`sat_ray.evaluation.low_precision.calibration.CONTROL_IMAGES` of them); seed and slots: of the
    evaluation. The verdicts depend on the answer, so all shards of an evaluation need the same one. Raises ValueError where fewer than
    two control images are classified rightly.
    """
    device = device_of(model)
    clean = slot_logits(model, control.images, control.image_ids, slots=slots, device=device)
    right = control.take(torch.nonzero(clean.argmax(dim=1) == control.labels).flatten())
    return {
        spec.name: calibrate(
            attacker_view(model, spec),
            right.images,
            right.labels,
            right.image_ids,
            spec=spec,
            seed=seed,
            slots=slots,
            device=device,
        )
        for spec in attacks
        if spec.gradient != "float32"
    }


def _calibrated(
    model: Model,
    given: Split,
    *,
    attacks: Sequence[AttackSpec],
    seed: int,
    slots: int,
) -> dict[str, Calibration]:
    """Calibrate attacks on control images of the images that they will attack, where any of them
    needs it."""
    if all(spec.gradient == "float32" for spec in attacks):
        return {}
    control = given.take(control_rows(len(given), seed=seed))
    return calibrate_attacks(model, control, attacks=attacks, seed=seed, slots=slots)


def _bound(spec: AttackSpec, calibrations: Mapping[str, Calibration]) -> float | None:
    if spec.gradient == "float32":
        return None
    if spec.name not in calibrations:
        raise ValueError(
            f"calibrations must have an entry for the attack {spec.name}, whose gradient is {spec.gradient}; "
            "leave calibrations out, or pass calibrate_attacks(...)"
        )
    return calibrations[spec.name].bound


def _one_attack(
    model: Model,
    images: Tensor,
    y: Tensor,
    ids: Tensor,
    clean: Tensor,
    *,
    spec: AttackSpec,
    bound: float | None,
    seed: int,
    slots: int,
    device: torch.device,
) -> pa.Table:
    if len(images) == 0:
        return OUTCOME_SCHEMA.empty_table()
    attack = make_attack(spec)
    attacked = attacker_view(model, spec)
    fast = None if bound is None else fast_copy(attacked, gradient=spec.gradient, device=device)
    if attacked is not model:
        same = torch.equal(
            slot_logits(attacked, images, ids, slots=slots, device=device).argmax(1),
            clean.argmax(1),
        )
        assert same, "the attacker's view does not compute the model's forward pass"
    correct = clean.argmax(dim=1) == y
    given = _weakest_first(clean, y)
    given = given if spec.final_iterate else given[correct[given]]
    inputs = (attack, images[given], y[given], Randomness(seed, ids[given]))
    ranks = [spec.rank_of_target(run) for run in range(spec.runs)] if spec.targets else None
    target = None if ranks is None else likeliest_others(clean, y)[given][:, ranks]
    where: dict[str, Any] = {"runs": spec.runs, "target": target, "slots": slots, "device": device}
    if fast is None or bound is None:
        verdicts = run_slots(attacked, *inputs, final_iterate=spec.final_iterate, **where)
    else:
        verdicts, _ = run_slots_fast(
            fast, attacked, *inputs, bound=bound, again=flies_again(spec.gradient), **where
        )
    tables = [
        outcome_rows(given[rows], found, y, ids, clean, spec=spec, restart=run)
        for run, (rows, found) in enumerate(by_run(verdicts, len(given), runs=spec.runs))
    ]
    if not spec.final_iterate:
        tables.append(clean_error_rows(torch.nonzero(~correct).flatten(), y, ids, clean, spec=spec))
    return pa.concat_tables(tables)


def _weakest_first(clean: Tensor, y: Tensor) -> Tensor:
    """Order images by clean margin: likely survivors, which take every step, wait for the end, and fill the slots then. (N,) int64."""
    return margin(clean, y).argsort(stable=True)
