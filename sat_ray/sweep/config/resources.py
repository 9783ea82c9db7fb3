"""Settings of what a sweep takes and what that costs; never part of a result's identity."""

from dataclasses import dataclass
from typing import Annotated

from sat_ray.utils.bounds import MOST_WORKERS, Bounds, Gpus, Workers, check_fields

Resources = dict[str, float]  # of Ray: CPU, GPU


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """What each part takes of the Ray cluster; never part of a result's identity."""

    train_workers: Workers = 2
    """Data-parallel workers of each training of the train stage."""
    train_groups: Workers = 1
    """Trainings of the train stage that run at once, each on train_workers workers of its own: for
    a cluster with more room than one training makes use of."""
    fewest_train_workers: Annotated[int, Bounds(0, MOST_WORKERS)] = 0
    """Go on with as few as this many when workers are lost and cannot be replaced, same global
    batch; 0: wait for all of them."""
    cpus_per_worker: Workers = 1
    """CPUs (and threads) of each training worker."""
    gpus_per_worker: Annotated[int, Bounds(0, MOST_WORKERS)] = 0
    """GPUs of each training worker."""
    cpus_per_trial: Workers = 1
    """CPUs (and threads) of each search trial."""
    gpus_per_trial: Gpus = 0
    """GPUs of each search trial."""
    cpus_per_evaluation: Workers = 1
    """CPUs (and threads) of each evaluation task."""
    gpus_per_evaluation: Gpus = 0
    """GPUs of each evaluation task; fractions share one."""
    share_gpus: bool = False
    """Let the first evaluation task have its GPU alone, and as many of the others share one (up to
    4) as its memory then shows to fit."""
    images_per_second: Annotated[float, Bounds(0, 1e9)] = 0.0
    """Training images per second of one accelerator, attack included, as measured on images as
    stored: for the hours of --dry-run; 0 where not known."""
    accelerator: str = ""
    """Model of the GPUs as it should appear in the records, for example H200; empty on CPUs."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="resources.")
        if self.share_gpus and self.gpus_per_evaluation != 1:
            raise ValueError(
                "resources.gpus_per_evaluation must be 1 with --resources.share-gpus, "
                f"got {self.gpus_per_evaluation:g}; each task then takes the share that it needs"
            )
        if self.fewest_train_workers > self.train_workers:
            raise ValueError(
                "resources.fewest_train_workers must be an integer from 0 to train_workers, "
                f"{self.train_workers}, got {self.fewest_train_workers}"
            )

    def worker(self) -> Resources:
        """Return what one training worker takes."""
        return _bundle(self.cpus_per_worker, self.gpus_per_worker)

    def trial(self) -> Resources:
        """Return what one search trial takes."""
        return _bundle(self.cpus_per_trial, self.gpus_per_trial)

    def evaluation(self) -> Resources:
        """Return what one evaluation task takes."""
        return _bundle(self.cpus_per_evaluation, self.gpus_per_evaluation)

    def require_accelerator(self) -> None:
        """Raise ValueError unless all stages have GPUs with a name, or none has any."""
        gpus = {
            name: getattr(self, name)
            for name in ("gpus_per_trial", "gpus_per_worker", "gpus_per_evaluation")
        }
        if len({bool(self.accelerator), *(count > 0 for count in gpus.values())}) > 1:
            given = ", ".join(f"{name} {count:g}" for name, count in gpus.items())
            raise ValueError(
                "resources.accelerator must be the GPUs' name (H200), with GPUs for all three "
                f"stages, or empty without GPUs, got {self.accelerator!r} with {given}; "
                "results of different devices are not compared"
            )


def _bundle(cpus: float, gpus: float) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """What accelerators cost; never part of a result's identity."""

    price_per_accelerator_hour: Annotated[float, Bounds(0, 1e9)] = 0.0
    """Price of one GPU (on CPUs: of one worker process) for an hour; 0: no money is reported."""
    currency: str = "USD"
    """Name of the currency, for tables."""
    budget: Annotated[float | None, Bounds(0, 1e12, above=True)] = None
    """--budget for short: what the search may spend, in the currency where there is a price, else
    in accelerator-hours. Once its committed trials have taken that, no other starts; those that run
    are finished, and the sweep goes on with what there is. None: no limit."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="cost.")
        if not self.currency.isalpha():
            raise ValueError(
                f"cost.currency must be letters, for example EUR, got {self.currency!r}"
            )

    def money(self, accelerator_seconds: float) -> float | None:
        """Return what these accelerator-seconds cost; None without a price."""
        if not self.price_per_accelerator_hour:
            return None
        return accelerator_seconds / 3600 * self.price_per_accelerator_hour

    def budget_seconds(self) -> float | None:
        """Return the budget in accelerator-seconds; None without one."""
        if self.budget is None:
            return None
        return 3600 * self.budget / (self.price_per_accelerator_hour or 1.0)

    def amount(self, accelerator_seconds: float) -> str:
        """Spell accelerator-seconds as the budget is given: `5.31 USD`, `1.2 accelerator-hours`."""
        money = self.money(accelerator_seconds)
        if money is None:
            return f"{accelerator_seconds / 3600:,.3g} accelerator-hours"
        return f"{money_text(money)} {self.currency}"


def money_text(value: float) -> str:
    """Spell an amount of money, `5.31`; small ones with two significant digits, `0.0040`."""
    return f"{value:,.2f}" if round(value, 2) >= 0.1 or value == 0 else f"{value:#.2g}"
