"""A guard against catastrophic overfitting: accuracy under the training attack goes on rising while
accuracy under PGD falls to nothing (Wong, Rice, Kolter 2020).

Every N steps the guard attacks the same held-out images by PGD-10:

    p     the share that survives, with its 95 % Wilson interval [low, high]
    best  the highest p of this training

    good        high >= best       not worse than the best beyond chance: this state is kept
    collapsed   high < best / 2    the last good state is restored, and training goes on with a
                                   milder attack
    waiting     otherwise

Integer counts are added over all processes first, so all of them decide alike.
"""

from dataclasses import dataclass, replace
from typing import Literal

from sat_ray.attacks import PGD
from sat_ray.attacks.spec import AttackSpec
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.threat import ThreatModel
from sat_ray.utils.errors import ReportedError

STEPS = 10
COLLAPSED_SHARE = 0.5


class CatastrophicOverfittingError(ReportedError):
    """Training collapsed more often than it may be rolled back."""


Verdict = Literal["good", "waiting", "collapsed"]


@dataclass(frozen=True)
class Memory:
    """What a guard remembers.

    best, robust: survivors in the best and in the latest test; images: in every test; good_epoch,
    good_step: of the state that is kept; collapses: so far.
    """

    best: int = 0
    robust: int = 0
    images: int = 0
    good_epoch: int = 0
    good_step: int = 0
    collapses: int = 0

    def after(self, robust: int, images: int, *, epoch: int, step: int) -> tuple["Memory", Verdict]:
        """Return the memory after one more test, `step` steps into an epoch, and the verdict.

        images: the same number every time.
        """
        best = max(self.best, robust)
        verdict = judge(robust, best, images)
        memory = replace(
            self,
            best=best,
            robust=robust,
            images=images,
            collapses=self.collapses + (verdict == "collapsed"),
        )
        if verdict == "good":
            memory = replace(memory, good_epoch=epoch, good_step=step)
        return memory, verdict


def judge(robust: int, best: int, images: int) -> Verdict:
    """Return the verdict on so many surviving images, when `best` survived once."""
    high = wilson_interval(robust, images)[1]
    if high < COLLAPSED_SHARE * best / images:
        return "collapsed"
    return "good" if high >= best / images else "waiting"


def guard_attack(threat_model: ThreatModel) -> AttackSpec:
    """Describe the attack of a guard."""
    return AttackSpec(threat_model=threat_model, steps=STEPS, step_size=threat_model.epsilon / 4)


def milder(attack: PGD, *, times: int = 1) -> PGD:
    """Return the training attack after `times` collapses.

    Each time the step size is halved as long as the steps still reach the edge of the ball; after
    that there is one step more.
    """
    for _ in range(times):
        shortest = attack.threat_model.epsilon / attack.steps
        if attack.step_size > shortest * (1 + 1e-9):
            attack = replace(attack, step_size=max(attack.step_size / 2, shortest))
        else:
            steps = attack.steps + 1
            attack = replace(attack, steps=steps, step_size=attack.threat_model.epsilon / steps)
    return attack


def event_of(memory: Memory, attack: PGD, *, epoch: int, step: int) -> dict[str, float]:
    """Describe a roll-back for the history. attack: the one that training continues with."""
    return {
        "epoch": epoch,
        "step": step,
        "robust_accuracy": memory.robust / memory.images,
        "best_robust_accuracy": memory.best / memory.images,
        "back_to_epoch": memory.good_epoch,
        "back_to_step": memory.good_step,
        "attack_steps": attack.steps,
        "attack_step_size": attack.step_size,
    }


def collapse_error(
    memory: Memory, *, limit: int, epoch: int, step: int, attack: PGD
) -> CatastrophicOverfittingError:
    """Return the error of a training that collapsed too often.

    attack: the one it collapsed under.
    """
    return CatastrophicOverfittingError(
        f"training collapsed {memory.collapses} times, more than training.guard_limit = {limit}; "
        f"the last time was in epoch {epoch}, step {step}: {memory.robust} of {memory.images} "
        f"held-out images survive PGD-{STEPS}, {memory.best} did at best; the training attack was "
        f"PGD-{attack.steps} with steps of {attack.threat_model.text(attack.step_size)}; try more "
        "training.attack_steps or a smaller training.learning_rate; the last good state is of "
        f"epoch {memory.good_epoch}, step {memory.good_step}"
    )
