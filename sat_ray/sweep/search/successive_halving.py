"""A grid of configurations halved at rungs, as functions of the scores that are committed: what is to be trained next, and who leads.

The members of a group (the alphas of one activation) train to the first rung; the best 1 / reduction go on to the next, while more than
one is left. Nothing here depends on when or in what order scores came, so a search that was stopped anywhere goes on as if it had not been.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sat_ray.sweep.config import SearchSettings
from sat_ray.sweep.search.search_space import Group, SearchPoint, promote

BASELINE = SearchPoint(activation="relu")
Scores = Mapping[tuple[SearchPoint, int], tuple[float, float]]
"""(robust, clean) validation accuracy of a configuration after a rung, in epochs."""


@dataclass(frozen=True, kw_only=True)
class Climb:
    """How far a group has come. rung: epochs its `waiting` members are to reach, 0 where it is through.

    best: the leader of the last rung that all its members have reached, of the first rung among those that have; None before any has.
    """

    best: SearchPoint | None
    rung: int = 0
    waiting: tuple[SearchPoint, ...] = ()


def climb(group: Group, scores: Scores, *, rungs: Sequence[int], reduction: int) -> Climb:
    """Follow a group from rung to rung as far as its members have scores; ties go to the earlier member."""
    best = None
    for number, rung in enumerate(rungs):
        if number and len(group.members) == 1:
            break
        found = {one: scores[one, rung] for one in group.members if (one, rung) in scores}
        if found and (
            number == 0 or len(found) == len(group.members)
        ):  # a later rung that some have not reached compares nothing
            best = promote(
                Group(tuple(one for one in group.members if one in found)),
                found,
                reduction=len(found),
            ).members[0]
        if waiting := tuple(one for one in group.members if one not in found):
            return Climb(best=best, rung=rung, waiting=waiting)
        group = promote(group, found, reduction=reduction)
    return Climb(best=best)


def climbs(competing: Sequence[Group], scores: Scores, search: SearchSettings) -> list[Climb]:
    """Return how far every group of a search has come."""
    return [
        climb(group, scores, rungs=search.rungs, reduction=search.reduction) for group in competing
    ]


def next_rung(found: Sequence[Climb]) -> tuple[int, list[SearchPoint]]:
    """Return the lowest rung that somebody is to reach, in epochs, and who, in the order in which they should start; (0, []) at the end."""
    rung = min((one.rung for one in found if one.waiting), default=0)
    return rung, in_turn([one.waiting for one in found if one.rung == rung])


def in_turn(members: Sequence[Sequence[SearchPoint]]) -> list[SearchPoint]:
    """Order configurations so that a search stopped early has seen most: relu as it is, then one of every group, then a second of each."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*members))
    return sorted((one for one in turns if one is not None), key=lambda one: one != BASELINE)
