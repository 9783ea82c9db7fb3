"""The driver starts stages, follows them through their records, and alone writes MLflow."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sat_ray.data.shards.writer import progress as shards_written
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.checks.claims import check_code, claim_folder, sweep_of
from sat_ray.integrations.command_line.checks.data_files import check_data
from sat_ray.integrations.command_line.checks.preflight import (
    slow_here,
    user_defined_names,
)
from sat_ray.integrations.command_line.checks.prepared import described
from sat_ray.integrations.command_line.parsing import Command
from sat_ray.integrations.command_line.process.invocation import by_console
from sat_ray.integrations.mlflow.links import described as described_links
from sat_ray.integrations.mlflow.links import how_to_serve
from sat_ray.integrations.mlflow.preflight import check_tracking, experiment_name
from sat_ray.integrations.mlflow.writer import TrackerLink, mlflow_tracker
from sat_ray.report.console import Reporter, StageProgress
from sat_ray.storage.preflight import check_writable, nothing_left
from sat_ray.storage.store import Storage
from sat_ray.sweep.cost.budget import describe_search
from sat_ray.sweep.cost.spent import cost_sentence
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.records.lease import driver_lease
from sat_ray.sweep.records.leftovers import remove_leftovers, supersede_without_outcomes
from sat_ray.sweep.records.store import Stage
from sat_ray.sweep.resources.bundles import most_evaluations
from sat_ray.sweep.tasks import CARD, CORRUPTIONS, EVALUATE, SEARCH, STRONG, TRAIN, VALIDATE

FOLLOWED: dict[str, tuple[Stage, ...]] = {  # which records a stage of the pipeline commits
    "search": (SEARCH,),
    "train": (TRAIN,),
    "card": (VALIDATE, CARD),
    "evaluate": (EVALUATE, STRONG, CORRUPTIONS),
}
POLL_SECONDS = 1.0
TRACK_SECONDS = 10.0
# times as long as a look at the records took, up to ten seconds: looking takes 5 % of the driver's
# time, however many records there are
REST = 19


class Driver:
    """Hold everything that a run of stages needs, from preflight checks to the last line.

    alone: the only stage that is run, "" for all.
    """

    def __init__(self, command: Command, *, alone: str = "") -> None:
        self.command = command
        self.config = command.config
        self.alone = alone
        self.sweep = sweep_of(command)
        self.reporter = Reporter()
        self.open = contextlib.ExitStack()
        self.pending: list[tuple[str, Any]] = []
        self.returned: dict[str, Any] = {}
        self.reused: dict[str, int] = {}
        self.metrics: Any = None

    def __enter__(self) -> "Driver":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.reporter)
            self._claim(stack)
            self._connect(stack)
            self.open = stack.pop_all()
        return self

    def _claim(self, stack: contextlib.ExitStack) -> None:
        """Take the sweep's folder for this driver alone, and settle what lies in it."""
        from sat_ray.integrations.ray.session import is_private

        self.reporter.say(f"sweep {self.command.name} in {self.command.storage.uri}")
        with nothing_left(self.command.root):
            check_writable(self.command.root)
            check_tracking(self.command.tracking_uri)
            if self.alone in ("", "prepare"):
                check_data(self.config, self.command.root)
        self.lease = stack.enter_context(driver_lease(self.command.storage))
        claim_folder(self.command)
        remove_leftovers(self.command.storage, say=self.reporter.say)
        if gone := supersede_without_outcomes(self.sweep.records):
            self.reporter.say(f"the outcomes of {gone} shards are gone; they are attacked again")
        self.command.root.child("data").remove_abandoned()
        experiment = {
            "experiment": experiment_name(self.config.recipe),
            "artifact_root": self.command.artifact_root,
        }
        make = partial(mlflow_tracker, self.command.tracking_uri, **experiment)
        # on a cluster others do the work, and Ray's own metrics page shows each node's load
        link = TrackerLink(self.sweep, self.reporter, make, watch=is_private())
        self.mlflow = stack.enter_context(link)
        check_code(self.command, self.reporter)

    def _connect(self, stack: contextlib.ExitStack) -> None:
        """Connect to Ray and MLflow, and check that what the sweep needs is there."""
        from sat_ray.integrations.ray.session import check_capacity, ray_session

        self.reporter.say(f"Ray: {stack.enter_context(ray_session())}")
        gradient = self.config.evaluation.gradient
        if hint := slow_here(gradient=gradient, accelerator=self.config.resources.accelerator):
            self.reporter.say(hint)
        from sat_ray.integrations.ray.user_code import check_importable  # imports ray

        check_capacity(self.config, stage=self.alone)
        check_importable(user_defined_names(self.config))
        self.mlflow.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        # stages still running end with the driver: Ray stops all work of a driver that is gone
        self.open.__exit__(kind, error, trace)

    def stage(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Start a stage as soon as its inputs are there; return the reference to its result."""
        from sat_ray.integrations.ray.tasks import stage_task

        name = function.__name__
        self.reused[name] = self._committed(name)
        ref = stage_task(function, self.sweep, *inputs, name=name)
        self.pending.append((name, ref))
        return ref

    def wait(self, wanted: Any) -> Any:
        """Follow the stages in order up to this one and return what it returned."""
        while any(ref is wanted for _, ref in self.pending):
            name, ref = self.pending[0]
            self.returned[name] = self._follow(name, ref)
            self.pending.pop(0)
            if ref is wanted:
                return self.returned[name]
        return None

    def report(self, *inputs: Any) -> dict[str, Any]:
        """Write the report of the stages' results, then MLflow, and return the leaderboard.

        inputs: of the stage, as references or as what the stages returned. The report never waits
        for MLflow: where that answers too late to tell the runs' ids, the report is written again.
        """
        from sat_ray.report.leaderboard.headline import headline_line
        from sat_ray.report.leaderboard.tables import to_terminal

        for ref in inputs:
            self.wait(ref)
        models, outcomes = self.returned["train"], self.returned["evaluate"]
        known = self.mlflow.run_ids(models)
        board: dict[str, Any] = self.wait(self.stage(stages.report, *inputs, known))
        self.reporter.console.print(to_terminal(board))
        self.reporter.say(headline_line(board))
        for sentence in filter(None, (board["calibration"], cost_sentence(board["cost"]))):
            self.reporter.say(sentence)
        self.reporter.say(f"report: {self.command.storage.full('report.html')}")
        self.reporter.say("writing runs, outcomes and models to MLflow")
        run_ids = self.mlflow.write(lambda projection: projection.finish(models, outcomes))
        if run_ids != known:
            board = self.wait(self.stage(stages.report, *inputs, run_ids))
        return board

    def register(self, board: dict[str, Any]) -> None:
        """Register the winner if its robustness card allows it, and end the sweep's runs."""
        cards, override = self.returned["card"], self.command.accept_flagged
        outcome = self.mlflow.write(
            lambda projection: projection.register(board, cards, override=override)
        )
        self.mlflow.write(lambda projection: projection.close(board))
        self.reporter.say(outcome)
        pages = self.sweep.pages
        links = self.mlflow.write(lambda projection: projection.links(board, pages=pages))
        in_clone = not by_console()
        serve = how_to_serve(self.command.tracking_uri, self.command.root, in_clone=in_clone)
        for line in described_links(links, serve):
            self.reporter.say(line)

    def _follow(self, name: str, ref: Any) -> Any:
        """Show the progress of a stage until it has ended, and return what it returned."""
        from sat_ray.integrations.ray.prometheus import SweepMetrics
        from sat_ray.integrations.ray.tasks import result

        if self.metrics is None:
            most = most_evaluations(self.config)
            self.metrics = SweepMetrics(self.config, self.sweep.records, planned_shards=most)
        total = self._total(name)
        if name == "evaluate" and total is not None:
            self.metrics.planned_shards = total
        progress = self.reporter.stage(
            name, total, reused=self.reused[name], at_most=name == "card"
        )
        self._watch(name, ref, progress)
        answer = result(ref)
        self.metrics.update()
        self._end(name, answer, progress)
        return answer

    def _watch(self, name: str, ref: Any, progress: StageProgress) -> None:
        """Look at a stage's records again and again, until it has ended."""
        from sat_ray.integrations.ray.tasks import wait

        shards = Storage(dataset_uri(self.config, self.command.root))
        records = self.sweep.records  # one for the whole stage: it yields each new record once
        looked = 0.0
        tracked = time.monotonic()
        while not wait(ref, seconds=min(max(POLL_SECONDS, REST * looked), TRACK_SECONDS)):
            self.lease.check()
            began = time.monotonic()
            due = name in FOLLOWED and began > tracked + TRACK_SECONDS
            if name == "prepare":
                progress.update_shards(*shards_written(shards))
            if name in FOLLOWED:
                new = [one for stage in FOLLOWED[name] for one in records.new(stage)]
                progress.update(self._committed(name), new)
            if due:
                self.metrics.update()
            looked = time.monotonic() - began
            if due:
                self.mlflow.show_progress()
                tracked = time.monotonic()

    def _end(self, name: str, answer: Any, progress: StageProgress) -> None:
        """Print what a stage did."""
        counted = described(answer) if name == "prepare" else ""
        if name in FOLLOWED:
            computed = self._committed(name) - self.reused[name]
            counted = f"{computed} computed, {self.reused[name]} reused"
        progress.end(counted)
        found = describe_search(self.config, self.sweep.records) if name == "search" else None
        if found is not None and found["cut_by_budget"]:
            self.reporter.say(found["sentence"])

    def _committed(self, name: str) -> int:
        """Count the records that a stage of the pipeline has committed."""
        return sum(len(self.sweep.records.keys(stage)) for stage in FOLLOWED.get(name, ()))

    def _total(self, name: str) -> int | None:
        """Return how many records a stage will commit, None where that is not known yet.

        Of the cards it is the most that there can be.
        """
        finalists = len(self.returned.get("search", []))
        models = len({record.payload["sha256"] for record in self.returned.get("train", [])})
        if name == "card" and finalists:
            cards = min(self.config.card.candidates, finalists)
            return cards + self._kinds(name) * models * self._shards("val")
        if name == "evaluate":
            return self._kinds(name) * models * self._shards("test") or None
        known = {
            "search": planned_trials(self.config),
            "train": finalists * len(self.config.final.seeds) or None,
        }
        return known.get(name)

    def _kinds(self, name: str) -> int:
        """Return how many kinds of evaluation a stage of the pipeline makes of each shard."""
        return len({stage.name for stage in FOLLOWED[name]} & {*self.config.evaluation.stages()})

    def _shards(self, split: str) -> int:
        """Return into how many tasks a split is cut for each model; 0 before it is prepared."""
        if "prepare" not in self.returned:
            return 0
        return self.config.evaluation.shards(self.returned["prepare"].manifest["splits"][split])
