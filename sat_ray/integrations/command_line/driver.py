"""The driver: starts stages, follows them through their records, and is the only writer of MLflow."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sat_ray.data.class_names import numbers_out_of_order
from sat_ray.data.shards.manifest import MANIFEST
from sat_ray.data.shards.writer import progress as shards_written
from sat_ray.data.sources.registry import DATASETS
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.code_changes import settle_code_changes
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.integrations.command_line.exit_status import exit_status
from sat_ray.integrations.command_line.parsing import Command, parse
from sat_ray.integrations.command_line.preflight import (
    check_data_named,
    check_machine,
    check_user_defined_parts,
    export_warnings,
    slow_here,
    user_defined_names,
)
from sat_ray.integrations.mlflow.links import described as described_links
from sat_ray.integrations.mlflow.links import how_to_serve
from sat_ray.integrations.mlflow.preflight import experiment_name
from sat_ray.integrations.mlflow.writer import TrackerLink, mlflow_tracker
from sat_ray.report.console import Reporter
from sat_ray.storage.preflight import check_writable
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import pages_of
from sat_ray.sweep.config import code_named, config_of
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.cost.budget import describe_search
from sat_ray.sweep.cost.spent import cost_sentence
from sat_ray.sweep.plan import dataset_uri, planned_trials
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.records.lease import driver_lease
from sat_ray.sweep.records.leftovers import remove_leftovers
from sat_ray.sweep.records.store import Stage
from sat_ray.sweep.tasks import CARD, EVALUATE, SEARCH, STAGES, STRONG, TRAIN, VALIDATE, Dataset
from sat_ray.utils.serialization import content_hash, to_json

FOLLOWED: dict[str, tuple[Stage, ...]] = {  # which records a stage of the pipeline commits
    "search": (SEARCH,),
    "train": (TRAIN,),
    "card": (VALIDATE, CARD),
    "evaluate": (EVALUATE, STRONG),
}
POLL_SECONDS, TRACK_SECONDS = 1.0, 10.0
REST = 19  # times as long as a look at the records took, up to ten seconds: looking takes 5 % of the driver's time, however many there are
SHOWN_IMAGES = 3


class Driver:
    """Hold everything that a run of stages needs, from preflight checks to the last line. alone: the only stage that is run, "" for all."""

    def __init__(self, command: Command, *, alone: str = "") -> None:
        self.command, self.config, self.alone = command, command.config, alone
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
            self.reporter.say(f"sweep {self.command.name} in {self.command.storage.uri}")
            check_writable(self.command.root)
            self.lease = stack.enter_context(driver_lease(self.command.storage))
            claim_folder(self.command)
            remove_leftovers(self.command.storage)
            self.command.root.child("data").remove_abandoned()
            experiment = {
                "experiment": experiment_name(self.config.recipe),
                "artifact_root": self.command.artifact_root,
            }
            make = partial(mlflow_tracker, self.command.tracking_uri, **experiment)
            self.mlflow = stack.enter_context(TrackerLink(self.sweep, self.reporter, make))
            check_code(self.command, self.reporter)
            from sat_ray.integrations.ray.session import check_capacity, ray_session

            check_reachable(self.command)
            if self.alone in ("", "prepare"):
                check_data_named(self.config, self.command.root)
            self.reporter.say(f"Ray: {stack.enter_context(ray_session())}")
            if hint := slow_here(
                gradient=self.config.evaluation.gradient,
                accelerator=self.config.resources.accelerator,
            ):
                self.reporter.say(hint)
            from sat_ray.integrations.ray.user_code import check_importable

            check_capacity(self.config, stage=self.alone)
            check_importable(user_defined_names(self.config))
            self.mlflow.check()
            self.open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        # stages still running end with the driver: Ray stops all work of a job whose driver has gone
        self.open.__exit__(kind, error, trace)

    def stage(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Start a stage as soon as its inputs are there; return the reference to what it will return."""
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
        from sat_ray.report.leaderboard.board import to_terminal
        from sat_ray.report.leaderboard.headline import headline_line

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
        serve = how_to_serve(self.command.tracking_uri, self.command.root)
        for line in described_links(links, serve):
            self.reporter.say(line)

    def _follow(self, name: str, ref: Any) -> Any:
        from sat_ray.integrations.ray.prometheus import SweepMetrics
        from sat_ray.integrations.ray.tasks import result, wait

        self.metrics = self.metrics or SweepMetrics(self.config, self.sweep.records)
        followed, records = FOLLOWED.get(name, ()), self.sweep.records
        shards = Storage(dataset_uri(self.config, self.command.root))
        total = self._total(name)
        if name == "evaluate" and total is not None:
            self.metrics.planned_shards = total
        progress = self.reporter.stage(
            name, total, reused=self.reused[name], at_most=name == "card"
        )
        looked, tracked = 0.0, time.monotonic()
        while not wait(ref, seconds=min(max(POLL_SECONDS, REST * looked), TRACK_SECONDS)):
            self.lease.check()
            began = time.monotonic()
            due = bool(followed) and began > tracked + TRACK_SECONDS
            if name == "prepare":
                progress.update_shards(*shards_written(shards))
            if followed:
                new = [record for stage in followed for record in records.new(stage)]
                progress.update(self._committed(name), new)
            if due:
                self.metrics.update()
            looked = time.monotonic() - began
            if due:
                self.mlflow.show_progress()
                tracked = time.monotonic()
        answer = result(ref)
        self.metrics.update()
        done = self._committed(name)
        counted = (
            f"{done - self.reused[name]} computed, {self.reused[name]} reused" if followed else ""
        )
        progress.end(described(answer) if name == "prepare" else counted)
        if (
            name == "search"
            and (found := describe_search(self.config, records)) is not None
            and found["cut_by_budget"]
        ):
            self.reporter.say(found["sentence"])
        return answer

    def _committed(self, name: str) -> int:
        """Count the records that a stage of the pipeline has committed."""
        return sum(len(self.sweep.records.keys(stage)) for stage in FOLLOWED.get(name, ()))

    def _total(self, name: str) -> int | None:
        """Return how many records a stage will commit; of the cards the most it can, None where that is not known yet."""
        finalists = len(self.returned.get("search", []))
        models = len({record.payload["sha256"] for record in self.returned.get("train", [])})
        strong = self.config.evaluation.strong != "none"
        if name == "card" and finalists:
            return min(self.config.card.candidates, finalists) + strong * models * self._shards(
                "val"
            )
        if name == "evaluate":
            return (1 + strong) * models * self._shards("test") or None
        return {
            "search": planned_trials(self.config),
            "train": finalists * len(self.config.final.seeds) or None,
        }.get(name)

    def _shards(self, split: str) -> int:
        """Return into how many tasks a split is cut for each model; 0 before it is prepared."""
        if "prepare" not in self.returned:
            return 0
        return self.config.evaluation.shards(self.returned["prepare"].manifest["splits"][split])


def described(dataset: Dataset) -> str:
    """Say what a prepared dataset holds and where it is, and what is odd about it."""
    splits, classes = dataset.manifest["splits"], len(dataset.manifest["class_names"])
    stored = ", ".join(f"{splits[name]:,} {name}" for name in ("train", "val"))
    stored += f" and {splits['test']:,} test images of {classes:,} classes in {dataset.uri}"
    mixed_up = numbers_out_of_order(dataset.manifest["class_names"])
    odd = (
        other_classes(dataset),
        other_count(dataset),
        mixed_up,
        enlarged(dataset),
        left_out(dataset),
    )
    return "; ".join(filter(None, (stored, *odd)))


def other_classes(dataset: Dataset) -> str:
    """Say so where a dataset has not the classes it is known for, as a folder that was not unpacked to its end; "" else."""
    manifest = dataset.manifest
    known = DATASETS[manifest["dataset"]].classes if manifest["dataset"] in DATASETS else 0
    found = len(manifest["class_names"])
    return (
        f"{manifest['dataset']} has {known:,} classes, this one {found:,}"
        if known not in (0, found)
        else ""
    )


def other_count(dataset: Dataset) -> str:
    """Say so where a dataset has not the number of images that it is known for; "" else."""
    manifest = dataset.manifest
    found = sum(manifest["splits"].values()) + len(manifest.get("corrupt", []))
    known = DATASETS[manifest["dataset"]].images if manifest["dataset"] in DATASETS else 0
    return (
        f"{manifest['dataset']} has {known:,} images, this one {found:,}"
        if known not in (0, found)
        else ""
    )


def enlarged(dataset: Dataset) -> str:
    """Say how many images were smaller than they are stored; "" where none was."""
    count, (_, height, width) = dataset.manifest.get("enlarged", 0), dataset.manifest["shape"]
    return f"images smaller than {width} x {height}, enlarged: {count:,}" if count else ""


def left_out(dataset: Dataset) -> str:
    """Name the images that could not be read when a dataset was prepared; "" where all could."""
    corrupt = dataset.manifest.get("corrupt", [])
    if not corrupt:
        return ""
    shown = "; ".join(f"{one['image']} ({one['reason']})" for one in corrupt[:SHOWN_IMAGES])
    more = f" and {len(corrupt) - SHOWN_IMAGES} more" if len(corrupt) > SHOWN_IMAGES else ""
    return f"corrupt images left out, {len(corrupt)}: {shown}{more}; all are listed in {dataset.uri}/{MANIFEST}"


def sweep_of(command: Command) -> Sweep:
    """Return what the stages are given for a command."""
    return Sweep(
        command.config,
        command.name,
        command.root,
        command.storage,
        command.argv,
        pages_of(command.tracking_uri),
    )


def check_reachable(command: Command) -> None:
    """Raise ValueError where the tracking server does not answer, before anything is started."""
    from sat_ray.integrations.mlflow.preflight import check_tracking

    check_tracking(command.tracking_uri)


def claim_folder(command: Command) -> None:
    """Write config.json into a sweep's folder; ValueError where the folder holds another config.

    Resources, price and budget are no part of what a sweep is: it holds those of the latest run.
    """
    ours, theirs = to_json(command.config), None
    with contextlib.suppress(FileNotFoundError):
        theirs = command.storage.read_json("config.json")
    if theirs is not None and not _is_of(command, theirs):
        raise ValueError(
            f"{command.storage.uri} holds a sweep with another config; choose another --name or --storage"
        )
    if ours != theirs:
        command.storage.write_json("config.json", ours)


def _is_of(command: Command, stored: dict[str, Any]) -> bool:
    """Say whether a stored config is that of a command; one that names other code is not, and is not imported."""
    if not set(code_named(stored)) <= set(code_named(to_json(command.config))):
        return False
    theirs = config_of(stored, source=command.storage.full("config.json"))
    return content_hash(theirs.semantic()) == content_hash(command.config.semantic())


def check_code(command: Command, reporter: Reporter) -> None:
    """Deal with records that other code made, and trainings that it began: refuse to start, reuse them, or move them aside."""
    records, named = sweep_of(command).records, {stage.name: stage for stage in STAGES}
    begun = ((named[record.stage], record) for record in records.begun())
    committed = ((stage, record) for stage in STAGES for record in records.each(stage))
    settle_code_changes(
        records, itertools.chain(begun, committed), choice=command.on_code_change, reporter=reporter
    )


def only(name: str) -> Callable[[Command], None]:
    """Return a run of one stage whose inputs must all be committed."""

    def run(command: Command) -> None:
        from sat_ray.integrations.ray.session import require_token

        require_token()  # before anything imports ray
        inputs = stages.committed_inputs(sweep_of(command), name)
        with Driver(command, alone=name) as driver:
            run_alone(driver, name, inputs)

    return run


def run_alone(driver: Driver, name: str, inputs: dict[str, Any]) -> None:
    """Run one stage on what the earlier ones committed."""
    functions = {
        function.__name__: function
        for function in (stages.prepare, stages.search, stages.train, stages.card, stages.evaluate)
    }
    driver.returned |= inputs
    if name in functions:
        driver.wait(driver.stage(functions[name], *inputs.values()))
        return
    driver.register(driver.report(*inputs.values()))


def main(run: Callable[[Command], None], *, about: str | None) -> int:
    """Parse the command line, run, and return the exit status: 0 only if every stage succeeded."""

    def act() -> None:
        command = parse(sys.argv[1:], RECIPES, default=DEFAULT, about=about or "")
        command.config.resources.require_accelerator()
        check_user_defined_parts(command.config, command.root)
        for sentence in export_warnings(command.config, command.root):
            print(f"warning: {sentence}", file=sys.stderr)
        if command.dry_run:
            print(describe(command))
        else:
            check_machine(
                gradient=command.config.evaluation.gradient,
                field="evaluation.gradient",
                accelerator=command.config.resources.accelerator,
                compiles_training=command.config.training.compile,
            )
            run(command)

    return exit_status(act)
