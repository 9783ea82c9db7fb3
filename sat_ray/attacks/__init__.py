"""Attacks as steppers: `start` makes a state, `step` scores its point and moves it.

`pgd` is the plain function over them.
"""

from sat_ray.attacks.apgd import APGD
from sat_ray.attacks.base import Attack, InfeasiblePointError, State
from sat_ray.attacks.cascade import cascade, strong_attacks
from sat_ray.attacks.pgd import PGD, pgd
from sat_ray.attacks.spec import AttackSpec, Gradient, make_attack
from sat_ray.attacks.square import Square

__all__ = [
    "APGD",
    "PGD",
    "Attack",
    "AttackSpec",
    "Gradient",
    "InfeasiblePointError",
    "Square",
    "State",
    "cascade",
    "make_attack",
    "pgd",
    "strong_attacks",
]
