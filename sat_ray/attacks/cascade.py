"""The cascade: attacks of different kinds, each on the survivors of those before it.

The budgets are AutoAttack's (Croce & Hein 2020): APGD on cross-entropy, targeted APGD on DLR
towards the 9 likeliest other classes, targeted FAB towards the same, Square with 5,000 queries.
`autoattack` has all four, as published figures do. `cascade` leaves FAB out, which rarely breaks an
image that targeted APGD does not.

The first two alone are the strong attacks behind every row of a leaderboard. Square takes most of
the passes of a cascade and decides nothing where gradients exist. The robustness card checks
whether they exist, so it uses Square.
"""

from collections.abc import Sequence

from sat_ray.attacks.loss_names import fewest_classes
from sat_ray.attacks.spec import AttackSpec, Gradient
from sat_ray.threat import ThreatModel

STEPS = 100
TARGETS = 9
QUERIES = 5000


def cascade(
    threat_model: ThreatModel,
    *,
    num_classes: int,
    steps: int = STEPS,
    queries: int = QUERIES,
    restarts: int = 1,
) -> list[AttackSpec]:
    """Return the attacks in the order of the cascade.

    num_classes: >= 2, of the model; below 4 there is no targeted DLR, and the plain difference of
    logits takes its place. restarts: of each attack; AutoAttack has 1.
    """
    square = AttackSpec(
        threat_model=threat_model,
        algorithm="square",
        steps=queries,
        restarts=restarts,
    )
    return [
        *strong_attacks(threat_model, num_classes=num_classes, steps=steps, restarts=restarts),
        square,
    ]


def autoattack(
    threat_model: ThreatModel, *, num_classes: int, steps: int = STEPS, queries: int = QUERIES
) -> list[AttackSpec]:
    """Return the attacks of AutoAttack's standard version in their order; see `cascade`."""
    attacks = cascade(threat_model, num_classes=num_classes, steps=steps, queries=queries)
    fab = AttackSpec(
        threat_model=threat_model,
        algorithm="fab",
        steps=steps,
        targets=min(TARGETS, num_classes - 1),
        random_start=False,
    )
    return [*attacks[:-1], fab, attacks[-1]]


def strong_attacks(
    threat_model: ThreatModel,
    *,
    num_classes: int,
    steps: int = STEPS,
    targets: int = TARGETS,
    restarts: int = 1,
    gradient: Gradient = "float32",
) -> list[AttackSpec]:
    """Return the attacks of the cascade that follow gradients, in its order; see `cascade`.

    targets: the most classes that the second attack moves towards, one after the other, the
    likeliest first.
    """
    targeted_loss = "dlr" if num_classes >= fewest_classes("dlr", targeted=True) else "margin"
    untargeted = AttackSpec(
        threat_model=threat_model,
        algorithm="apgd",
        steps=steps,
        restarts=restarts,
        gradient=gradient,
    )
    targeted = AttackSpec(
        threat_model=threat_model,
        algorithm="apgd",
        steps=steps,
        loss=targeted_loss,
        targets=min(targets, num_classes - 1),
        restarts=restarts,
        gradient=gradient,
    )
    return [untargeted, targeted]


def describe_strong(attacks: Sequence[AttackSpec], *, after: str) -> dict[str, object]:
    """Describe strong attacks as in a leaderboard.

    after: the attack whose survivors they attack.
    """
    return {
        "name": " + ".join(spec.name for spec in attacks),
        "after": after,
        "steps": max(spec.steps for spec in attacks),
        "targets": max(spec.targets for spec in attacks),
        "gradient": attacks[0].gradient,
    }
