"""Exact robust accuracy: every image, every visited point, one row per (image, attack, restart).

An image is broken when any visited feasible point is misclassified, the start and the last point
included: k steps score k + 1 points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, make_attack
from sat_ray.attacks.base import Model, require_inference_mode
from sat_ray.attacks.losses import likeliest_others, margin
from sat_ray.attacks.spec import FINAL_SUFFIX
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.call_size import sized_calls
from sat_ray.evaluation.engine.run_attack import run_slots, slot_logits
from sat_ray.evaluation.engine.verdicts import Verdicts, by_run
from sat_ray.evaluation.inputs import (
    attacker_view,
    check_classes,
    check_images,
    check_logits,
    device_of,
)
from sat_ray.evaluation.low_precision.calibration import Calibration, calibrate, control_rows
from sat_ray.evaluation.low_precision.surrogate import make_surrogate, repeats_close_survivors
from sat_ray.evaluation.low_precision.verification import LowPrecision, run_verified
from sat_ray.evaluation.outcomes import (
    OUTCOME_SCHEMA,
    SORT_ORDER,
    clean_error_rows,
    outcome_rows,
    robust_image_ids,
)
from sat_ray.utils.precision import exact_float32


@exact_float32()
def evaluate(
    model: Model,
    images_uint8: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int],
    image_ids: Tensor | np.ndarray | Sequence[int],
    *,
    attacks: Sequence[AttackSpec],
    seed: int = 0,
    slots: int | None = None,
    cascade: bool = False,
    calibrations: Mapping[str, Calibration] | None = None,
) -> pa.Table:
    """Attack every image with every attack and return outcomes by attack, restart and image id.

    model: [0, 1] pixels -> logits, in inference mode; images_uint8: (N, C, H, W) uint8; labels:
    (N,) in [0, K); image_ids: (N,) unique; slots: rows of every model call, part of the numerical
    environment (multiples of 32 serve every number of features, see
    docs/explanation/evaluation-engine.md), None: 32, or on a CPU up to 256 for a small network,
    which follows from the model and the size of an image alone; cascade: give each attack only what
    survived those before it, instead of every image;
    calibrations: of every attack whose gradient is not float32, by its name (`calibrate_attacks`).
    None: measured here, on at most
    `sat_ray.evaluation.low_precision.calibration.CONTROL_IMAGES` of the given images, drawn by the
    seed. Pass one where parts of a set are evaluated one by one: the verdicts depend on it.

    Clean errors are not attacked (except by final-iterate attacks, whose rule scores the last point
    alone). Restart r has rows for the images that survived the restarts before it; in a targeted
    attack every target is a restart.
    Raises ValueError on bad input, InfeasiblePointError if an attack leaves its threat model.
    """
    given = check_images(images_uint8, labels, image_ids, slots=slots)
    require_inference_mode(model)
    _check_names(attacks)
    if len(given) == 0:
        return OUTCOME_SCHEMA.empty_table()
    with sized_calls(model, given.images.shape[1:], slots=slots, device=device_of(model)) as rows:
        return _attack_all(
            model, given, attacks, calibrations, seed=seed, slots=rows, cascade=cascade
        )


def _attack_all(
    model: Model,
    given: Split,
    attacks: Sequence[AttackSpec],
    calibrations: Mapping[str, Calibration] | None,
    *,
    seed: int,
    slots: int,
    cascade: bool,
) -> pa.Table:
    """Return the outcomes of all attacks, from calls of exactly `slots` rows."""
    device = device_of(model)
    clean = slot_logits(model, given.images, given.image_ids, slots=slots, device=device)
    check_logits(clean, given.labels)
    for spec in attacks:
        check_classes(spec, clean.shape[1])
    if calibrations is None:
        calibrations = _calibrated(model, given, attacks=attacks, seed=seed, slots=slots)
    target = _Target(model, given, clean, seed=seed, slots=slots, device=device)
    tables: list[pa.Table] = []
    for spec in attacks:
        tables.append(target.attacked(spec, bound=_bound(spec, calibrations)))
        if cascade and not spec.final_iterate:
            alive = torch.tensor(sorted(robust_image_ids(tables[-1])), dtype=torch.int64)
            target = target.take(torch.isin(target.given.image_ids, alive))
    return pa.concat_tables(tables).sort_by(SORT_ORDER)


def counted_robust_ids(table: pa.Table) -> set[int]:
    """Return the images that survived every attack that counts.

    Final-iterate attacks are no part of a robust accuracy (`sat_ray.report.leaderboard.summary`).
    """
    counted = pc.invert(pc.ends_with(table["attack"], FINAL_SUFFIX))
    return robust_image_ids(table.filter(counted))


@exact_float32()
def calibrate_attacks(
    model: Model,
    control: Split,
    *,
    attacks: Sequence[AttackSpec],
    seed: int = 0,
    slots: int | None = None,
) -> dict[str, Calibration]:
    """Measure the bound of verification of every attack that uses a surrogate, by its name.

    control: some images of the split that will be attacked
    (`sat_ray.evaluation.low_precision.calibration.CONTROL_IMAGES` of them); seed and slots: of the
    evaluation. The verdicts depend on the answer, so all shards of an evaluation need the same one.
    Raises ValueError where fewer than two control images are correctly classified.
    """
    with sized_calls(model, control.images.shape[1:], slots=slots, device=device_of(model)) as rows:
        return _calibrations(model, control, attacks=attacks, seed=seed, slots=rows)


def _calibrations(
    model: Model, control: Split, *, attacks: Sequence[AttackSpec], seed: int, slots: int
) -> dict[str, Calibration]:
    device = device_of(model)
    clean = slot_logits(model, control.images, control.image_ids, slots=slots, device=device)
    right = control.take(torch.nonzero(clean.argmax(dim=1) == control.labels).flatten())
    return {
        spec.name: calibrate(
            attacker_view(model, spec), right, spec=spec, seed=seed, slots=slots, device=device
        )
        for spec in attacks
        if spec.gradient != "float32"
    }


def _check_names(attacks: Sequence[AttackSpec]) -> None:
    """Raise ValueError unless there is an attack, and all have different names."""
    names = [spec.name for spec in attacks]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"attacks must be at least one, with different names, got {names}")


def _calibrated(
    model: Model,
    given: Split,
    *,
    attacks: Sequence[AttackSpec],
    seed: int,
    slots: int,
) -> dict[str, Calibration]:
    """Calibrate attacks on control images of those that they will attack, where one needs it."""
    if all(spec.gradient == "float32" for spec in attacks):
        return {}
    control = given.take(control_rows(len(given), seed=seed))
    return calibrate_attacks(model, control, attacks=attacks, seed=seed, slots=slots)


def _bound(spec: AttackSpec, calibrations: Mapping[str, Calibration]) -> float | None:
    """Return the bound of verification of an attack; None where it uses no surrogate."""
    if spec.gradient == "float32":
        return None
    if spec.name not in calibrations:
        raise ValueError(
            f"calibrations must have an entry for the attack {spec.name}, "
            f"whose gradient is {spec.gradient}; "
            "leave calibrations out, or pass calibrate_attacks(...)"
        )
    return calibrations[spec.name].bound


@dataclass(frozen=True)
class _Target:
    """A model, the images on which it is attacked, and its clean logits, (N, K) on the CPU."""

    model: Model
    given: Split
    clean: Tensor
    seed: int
    slots: int
    device: torch.device

    def take(self, chosen: Tensor) -> "_Target":
        """Return the same with some of the images. chosen: (N,) bool."""
        rows = torch.nonzero(chosen).flatten()
        return replace(self, given=self.given.take(rows), clean=self.clean[rows])

    def attacked(self, spec: AttackSpec, *, bound: float | None) -> pa.Table:
        """Return the outcomes of one attack. bound: of verification, None without a surrogate."""
        if len(self.given) == 0:
            return OUTCOME_SCHEMA.empty_table()
        y, ids = self.given.labels, self.given.image_ids
        correct = self.clean.argmax(dim=1) == y
        rows = _weakest_first(self.clean, y)
        if not spec.final_iterate:
            rows = rows[correct[rows]]
        verdicts = self._verdicts(spec, self._inputs(spec, rows), bound=bound)
        tables = [
            outcome_rows(rows[some], found, y, ids, self.clean, spec=spec, restart=run)
            for run, (some, found) in enumerate(by_run(verdicts, len(rows), runs=spec.runs))
        ]
        if not spec.final_iterate:
            errors = torch.nonzero(~correct).flatten()
            tables.append(clean_error_rows(errors, y, ids, self.clean, spec=spec))
        return pa.concat_tables(tables)

    def _inputs(self, spec: AttackSpec, rows: Tensor) -> AttackInputs:
        target = None
        if spec.targets:
            ranks = [spec.rank_of_target(run) for run in range(spec.runs)]
            target = likeliest_others(self.clean, self.given.labels)[rows][:, ranks]
        return AttackInputs.of(self.given.take(rows), seed=self.seed, target=target, runs=spec.runs)

    def _verdicts(self, spec: AttackSpec, inputs: AttackInputs, *, bound: float | None) -> Verdicts:
        attack = make_attack(spec)
        view = self._view(spec)
        if bound is None:
            return run_slots(
                view,
                attack,
                inputs,
                slots=self.slots,
                device=self.device,
                final_iterate=spec.final_iterate,
            )
        how = LowPrecision(
            surrogate=make_surrogate(view, gradient=spec.gradient, device=self.device),
            model=view,
            bound=bound,
            repeat_close=repeats_close_survivors(spec.gradient),
        )
        verdicts, _ = run_verified(how, attack, inputs, slots=self.slots, device=self.device)
        return verdicts

    def _view(self, spec: AttackSpec) -> Model:
        """Return the model as the attack differentiates it, with the same forward pass."""
        view = attacker_view(self.model, spec)
        if view is not self.model:
            logits = slot_logits(
                view,
                self.given.images,
                self.given.image_ids,
                slots=self.slots,
                device=self.device,
            )
            same = torch.equal(logits.argmax(1), self.clean.argmax(1))
            assert same, "the attacker's view does not compute the model's forward pass"
        return view


def _weakest_first(clean: Tensor, y: Tensor) -> Tensor:
    """Sort images by clean margin, (N,) int64.

    Likely survivors, which take every step, then come last, and fill the slots at the end.
    """
    return margin(clean, y).argsort(stable=True)
