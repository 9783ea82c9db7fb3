"""Settings of the search, and of what is trained to the end."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.sweep.search.search_space import (
    SearchPoint,
    parse_choice,
    parse_pair,
    without_repeats,
)
from sat_ray.utils.bounds import Bounds, Epochs, Seed, check_fields

TABLE1_PAIRS = (
    "relu/relu_smooth_backward",
    "relu_smooth_backward/relu",
    "relu_smooth_backward/relu_smooth_backward",
)
SEARCHED = tuple(name for name in ACTIVATIONS if name != "relu_smooth_backward")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How activation and alpha are searched."""

    method: Literal["grid", "asha", "optuna"] = "grid"
    """grid: every alpha of each activation, halved at each rung; asha: random alphas, stopped
    asynchronously; optuna: TPE over alpha."""
    activations: tuple[str, ...] = SEARCHED
    """Activations to compare: a name (its own alphas) or name:alpha,alpha; module:function of your
    own, and perhaps :alpha,alpha. Of two names of one function one is trained."""
    pairs: tuple[str, ...] = TABLE1_PAIRS
    """activation/attacker_activation rows trained beside them: the paper's Table 1."""
    rungs: tuple[Epochs, ...] = (3, 6)
    """Epochs after which the alphas of one activation are compared; the last is the longest trial.
    A first one below half of the last prefers the alphas that learn fastest."""
    reduction: Annotated[int, Bounds(2, 1_000_000)] = 2
    """One in `reduction` alphas of an activation goes on after a rung."""
    samples: Annotated[int, Bounds(1, 1_000_000)] = 24
    """Trials drawn by asha and optuna."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds that each point of the grid is trained with; alphas are compared by the mean over them.
    asha and optuna take one, which is the sampler's, too."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="search.")
        if not self.points():
            raise ValueError(
                "search.activations and search.pairs must name at least one activation, "
                "got none in both"
            )
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(
                f"search.rungs must be growing whole numbers of epochs, got {self.rungs}; "
                "for example 3 6"
            )
        check_seeds(self.seeds, field="search.seeds")
        if self.method != "grid" and len(self.seeds) > 1:
            raise ValueError(
                f"search.seeds must be one seed with --search.method {self.method}, "
                f"got {self.seeds}; the grid takes several"
            )

    def points(self) -> tuple[SearchPoint, ...]:
        """Return every point of the grid, each function once, in the order given."""
        return without_repeats(self._named())

    def repeated(self) -> tuple[str, ...]:
        """Name the points left out because another name of the same function is in the grid."""
        left_out = set(self._named()) - set(self.points())
        return tuple(dict.fromkeys(one.name for one in self._named() if one in left_out))

    def _named(self) -> list[SearchPoint]:
        singles = [
            one
            for text in self.activations
            for one in parse_choice(text, field="search.activations")
        ]
        pairs = [parse_pair(text, field="search.pairs") for text in self.pairs]
        return [*singles, *pairs]


@dataclass(frozen=True, kw_only=True)
class FinalSettings:
    """What is trained to the end for the leaderboard: every best alpha, and the pairs."""

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of each configuration; fewer than three support no claim."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="final.")
        check_seeds(self.seeds, field="final.seeds")


def check_seeds(seeds: tuple[int, ...], *, field: str) -> None:
    """Raise ValueError unless there is at least one seed, each once."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"{field} must be at least one seed, each once, got {seeds}")
