"""The cascade: attacks of different kinds, each on the survivors of those before it, at AutoAttack's budgets (Croce & Hein 2020).

APGD on cross-entropy, targeted APGD on DLR towards the 9 likeliest other classes, Square with 5,000 queries. (AutoAttack has FAB as a
fourth member between the last two; it rarely breaks an image that targeted APGD does not, and is left out.)
"""

from sat_ray.attacks.spec import AttackSpec
from sat_ray.losses import fewest_classes
from sat_ray.threat import ThreatModel

STEPS, TARGETS, QUERIES = 100, 9, 5000


def cascade(
    threat_model: ThreatModel, *, num_classes: int, steps: int = STEPS, queries: int = QUERIES, restarts: int = 1
) -> list[AttackSpec]:
    """Return the attacks in the order of the cascade.

    num_classes: >= 2, of the model; below 4 there is no targeted DLR, and the plain difference of logits takes its place. restarts: of each
    attack; AutoAttack has 1.
    """
    targeted_loss = "dlr" if num_classes >= fewest_classes("dlr", targeted=True) else "margin"
    targets = min(TARGETS, num_classes - 1)
    return [
        AttackSpec(threat_model=threat_model, algorithm="apgd", steps=steps, restarts=restarts),
        AttackSpec(threat_model=threat_model, algorithm="apgd", steps=steps, loss=targeted_loss, targets=targets, restarts=restarts),
        AttackSpec(threat_model=threat_model, algorithm="square", steps=queries, restarts=restarts),
    ]
