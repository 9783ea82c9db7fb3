"""A search that its budget ends: where it stops, what it then says, and that more money takes it to
where none would have stopped it.
"""

import dataclasses
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import filled, parsed

from sat_ray.storage.store import Storage
from sat_ray.sweep.config import CostSettings, SearchSettings, SweepConfig
from sat_ray.sweep.cost.budget import (
    Budget,
    SearchResult,
    commit_result,
    describe_search,
    find_result,
    result_of,
)
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.recipes.digits import digits, digits_smoke
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint, groups
from sat_ray.sweep.search.successive_halving import BASELINE, climbs, in_turn, next_rung
from sat_ray.sweep.tasks import SEARCH
from sat_ray.utils.serialization import content_hash, to_json
from sat_ray.utils.settings_json import from_json

GRID = SearchSettings(
    activations=("silu:1", "parametric_softplus:2,5,10,20", "relu", "celu:0.5,1,2"),
    pairs=("relu/relu_smooth_backward",),
)
GRID = dataclasses.replace(GRID, rungs=(1, 2, 4))
Scores = dict[tuple[SearchPoint, int], tuple[float, float]]


def score(one: SearchPoint, rung: int, *, seed: int) -> tuple[float, float]:
    """Draw a score out of few, so that many are equal."""
    drawn = random.Random(f"{one.slug} {rung} {seed}")
    return drawn.randrange(4) / 4, drawn.randrange(2) / 2


def textbook(search: SearchSettings, *, seed: int) -> tuple[list[SearchPoint], int]:
    """Halve every group on its own, all at once, and return (finalists, trainings).

    Earlier members come first where scores are equal.
    """
    finalists, trainings = [], 0
    for group in groups(search.points()):
        alive = list(group.members)
        for number, rung in enumerate(search.rungs):
            if number and len(alive) == 1:
                break
            trainings += len(alive)
            alive.sort(key=lambda one: score(one, rung, seed=seed), reverse=True)
            best, alive = alive[0], alive[: -(-len(alive) // search.reduction)]
        finalists.append(best)
    return finalists, trainings


def run(
    search: SearchSettings,
    scores: Scores,
    *,
    seed: int,
    at_most: float = float("inf"),
    order: random.Random | None = None,
) -> None:
    """Train what is next, up to so many trainings in all; order: shuffles each rung,
    as trials that end when they like do.
    """
    while True:
        rung, waiting = next_rung(climbs(groups(search.points()), scores, search))
        if not waiting or len(scores) >= at_most:
            return
        if order is not None:
            order.shuffle(waiting)
        for one in waiting[: int(min(at_most - len(scores), len(waiting)))]:
            scores[one, rung] = score(one, rung, seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(1, 25), max_size=3),
    reduction=st.integers(2, 4),
)
def test_a_search_cut_anywhere_and_gone_on_with_ends_as_one_that_was_not(
    seed: int, cuts: list[int], reduction: int
) -> None:
    search, scores = dataclasses.replace(GRID, reduction=reduction), Scores()
    for cut in sorted(cuts):
        run(search, scores, seed=seed, at_most=cut, order=random.Random(seed + cut))
    run(search, scores, seed=seed)
    found = climbs(groups(search.points()), scores, search)
    finalists, trainings = textbook(search, seed=seed)
    assert [one.best for one in found] == finalists
    assert len(scores) == trainings
    config = dataclasses.replace(digits(), search=search)
    assert trainings == planned_trials(config)


def test_the_baseline_comes_first_and_every_activation_once_before_any_a_second_time() -> None:
    rung, order = next_rung(climbs(groups(GRID.points()), {}, GRID))
    assert rung == 1 and order[0] == BASELINE and len(order) == len(GRID.points())
    assert len({(one.activation, one.attacker_activation) for one in order[:5]}) == 5
    assert [one.alpha for one in order[5:]] == [5.0, 1.0, 10.0, 2.0, 20.0]
    assert in_turn([[one for one in order if one != BASELINE]])[0].activation == "silu"


def test_a_group_cut_inside_a_rung_is_led_by_the_winner_of_the_last_that_all_reached() -> None:
    two, five, ten, twenty = (
        SearchPoint(activation="parametric_softplus", alpha=alpha) for alpha in (2, 5, 10, 20)
    )
    scores: Scores = {(two, 1): (0.1, 0.0), (five, 1): (0.3, 0.0), (ten, 1): (0.2, 0.0)}

    def best() -> SearchPoint | None:
        return climbs(groups(GRID.points()), scores, GRID)[1].best

    assert best() == five  # of those in the first rung that were tried
    scores[twenty, 1] = (0.25, 0.0)
    scores[twenty, 2] = (0.9, 0.0)  # it alone reached the second rung: nothing to compare it with
    assert best() == five
    scores[five, 2] = (0.4, 0.0)
    assert best() == twenty


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the records of two trials, one of them with two rungs: 30 + 40 seconds."""
    made = Records(Storage.at(str(tmp_path)))
    for name, until, seconds in (("relu-s0", 1, 30.0), ("silu-s0", 1, 25.0), ("silu-s0", 2, 40.0)):
        payload = {"name": name, "until": until, "accelerator_seconds": seconds}
        made.commit(SEARCH, f"{name}-{until}", **filled(SEARCH, payload), seconds=seconds)
    return made


def with_budget(budget: float | None, *, price: float = 0.0, gpus: float = 0.0) -> SweepConfig:
    base = digits_smoke()
    cost = CostSettings(budget=budget, price_per_accelerator_hour=price, currency="EUR")
    return dataclasses.replace(
        base, cost=cost, resources=dataclasses.replace(base.resources, gpus_per_trial=gpus)
    )


@pytest.mark.parametrize(
    ("config", "spent"),
    [
        (with_budget(None), False),
        (with_budget(70 / 3600), True),  # accelerator-hours
        (with_budget(70.1 / 3600), False),
        (with_budget(70 / 3600 * 2, price=2.0), True),  # the same in a currency
        (with_budget(70 / 3600, price=2.0), True),
        (with_budget(70 / 3600 * 2.1, price=2.0), False),
        (with_budget(0.25 * 70 / 3600, gpus=0.25), True),
        (with_budget(0.26 * 70 / 3600, gpus=0.25), False),
    ],
)
def test_a_budget_is_spent_when_the_committed_trials_have_taken_it(
    records: Records, config: SweepConfig, spent: bool
) -> None:
    assert Budget.of(config).is_spent(records) is spent


def test_a_result_holds_for_its_own_trials_and_budget_alone(records: Records) -> None:
    config = with_budget(0.01)
    best: list[SearchPoint | None] = [
        BASELINE,
        None,
        SearchPoint(activation="relu", attacker_activation="relu_smooth_backward"),
    ]
    result = result_of(config, best, done=3, planned=4, unit="trainings", cut=True)
    assert result.left_out == ("parametric_softplus",) and len(result.finalists) == 2
    assert find_result(config, records) is None
    commit_result(config, records, result)
    assert find_result(config, records) == result == SearchResult.from_json(result.to_json())
    assert find_result(from_json(SweepConfig, to_json(config)), records) == result, (
        "as whoever reads config.json finds it"
    )
    assert (
        find_result(with_budget(0.02), records) is None
        and find_result(with_budget(None), records) is None
    )
    said = describe_search(config, records)
    assert said is not None and said["cut_by_budget"] and said["accelerator_seconds"] == 70.0
    assert said["sentence"] == (
        "The search was cut by its budget of 0.01 accelerator-hours at 3 of 4 trainings (0.0194 "
        "accelerator-hours spent); "
        "never tried: parametric_softplus. A larger --budget goes on with it."
    )
    records.commit(
        SEARCH,
        "more",
        **filled(SEARCH, {"name": "mish-s0", "until": 1, "accelerator_seconds": 1.0}),
        seconds=1.0,
    )
    assert find_result(config, records) is None


@pytest.mark.parametrize(
    "words", [("--budget", "2.5"), ("--budget=2.5",), ("--cost.budget", "2.5"), ("--budget", "5/2")]
)
def test_a_budget_is_an_option_and_no_part_of_what_determines_results(
    words: tuple[str, ...],
) -> None:
    found, plain = parsed("digits", *words), parsed("digits")
    assert found.config.cost.budget == 2.5 and plain.config.cost.budget is None
    assert found.name == plain.name and content_hash(found.config.semantic()) == content_hash(
        plain.config.semantic()
    )
    assert from_json(SweepConfig, to_json(found.config)) == found.config


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_a_budget_that_is_none_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(ValueError, match=r"cost\.budget") as caught:
        parsed("digits", "--budget", value)
    assert "\n" not in str(caught.value)
