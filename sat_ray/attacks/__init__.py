"""Attacks as steppers: `start` makes a state, `step` scores its point and moves it. `pgd` is the plain function over them."""

from sat_ray.attacks.base import Attack, InfeasiblePointError, State
from sat_ray.attacks.pgd import PGD, pgd
from sat_ray.attacks.spec import AttackSpec, make_attack

__all__ = ["PGD", "Attack", "AttackSpec", "InfeasiblePointError", "State", "make_attack", "pgd"]
