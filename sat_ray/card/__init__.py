"""The robustness card: evidence that a robust accuracy can be believed, judged PASS or FLAG."""

from collections.abc import Callable, Sequence
from typing import Any

from sat_ray.attacks import AttackSpec
from sat_ray.attacks.base import Model
from sat_ray.card.checks import FLAG, PASS, judge
from sat_ray.card.evidence import measure
from sat_ray.card.settings import CardSettings
from sat_ray.data.split import Split

__all__ = ["FLAG", "PASS", "CardSettings", "robustness_card"]


def robustness_card(
    model: Model,
    split: Split,
    *,
    attack: AttackSpec,
    settings: CardSettings | None = None,
    variants: Callable[[AttackSpec], Sequence[AttackSpec]] = lambda spec: [spec],
    seed: int = 0,
    lanes: int = 32,
) -> dict[str, Any]:
    """Measure a model and judge it: {"verdict": "PASS" or "FLAG", "reasons", "checks", "ladder", "curves", "n", ...}, JSON-ready.

    model: [0, 1] pixels -> logits, in inference mode; split: images it was not trained on, of which at most `settings.images` are used;
    attack: the PGD whose robust accuracy is claimed; variants: the backward passes that each attack must be tried through.
    Raises ValueError on bad input (a model in train mode, probabilities for logits, NaN, labels out of range).
    """
    evidence = measure(model, split, attack=attack, settings=settings or CardSettings(), variants=variants, seed=seed, lanes=lanes)
    checks = judge(evidence)
    failed = [check for check in checks if not check.passed]
    return {
        "verdict": FLAG if failed else PASS,
        "reasons": [f"{check.name}: {check.found}" for check in failed],
        "checks": [check.to_json() for check in checks],
        **evidence,
    }
