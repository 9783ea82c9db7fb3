"""Attacks as steppers: `start` makes a state, `step` scores its point and moves it.

`pgd` is the plain function over them.
"""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.attacks.apgd import APGD
    from sat_ray.attacks.base import Attack, InfeasiblePointError, State
    from sat_ray.attacks.cascade import autoattack, cascade, strong_attacks
    from sat_ray.attacks.fab import FAB
    from sat_ray.attacks.pgd import PGD, pgd
    from sat_ray.attacks.spec import AttackSpec, Gradient, make_attack
    from sat_ray.attacks.square import Square

__all__ = [
    "APGD",
    "FAB",
    "PGD",
    "Attack",
    "AttackSpec",
    "Gradient",
    "InfeasiblePointError",
    "Square",
    "State",
    "autoattack",
    "cascade",
    "make_attack",
    "pgd",
    "strong_attacks",
]

_NAMES = {
    "apgd": ["APGD"],
    "base": ["Attack", "InfeasiblePointError", "State"],
    "cascade": ["autoattack", "cascade", "strong_attacks"],
    "fab": ["FAB"],
    "pgd": ["PGD", "pgd"],
    "spec": ["AttackSpec", "Gradient", "make_attack"],
    "square": ["Square"],
}

__getattr__ = lazy_names(__name__, _NAMES)
