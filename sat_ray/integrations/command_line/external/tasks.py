"""The evaluation of a model made elsewhere as Ray tasks: one per shard, each committed once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.report.console import Reporter, StageProgress
from sat_ray.sweep.plan.evaluations import shard_bounds
from sat_ray.sweep.records.so_far import Committed, SoFar
from sat_ray.sweep.records.store import Record, Records, numerical_environment
from sat_ray.sweep.resources.nodes import Demand, check_room
from sat_ray.sweep.tasks import EVALUATE, EvaluationTask

if TYPE_CHECKING:
    from sat_ray.integrations.command_line.external.subject import Subject

POLL_SECONDS = 1.0


def tasks_of(given: ExternalOptions, subject: "Subject", name: str) -> list[EvaluationTask]:
    """Cut the images into shards of nearly equal size."""
    return [
        EvaluationTask(
            checkpoint=subject.uri,
            checkpoint_sha256=subject.digest,
            kind=subject.kind,
            weights=subject.weights,
            name=name,
            attacks=subject.attacks,
            cascade=given.in_cascade,
            first=first,
            last=last,
            split=given.split,
            sample=subject.sample,
            seed=given.seed,
            slots=given.rows,
            dataset=subject.dataset,
            environment=environment_of(given),
            label_order=subject.label_order,
            shuffled=given.stop_when_width is not None,
        )
        for first, last in shard_bounds(subject.n, given.images_per_shard(subject.n))
    ]


def environment_of(given: ExternalOptions) -> dict[str, Any]:
    """Return the numerical environment of the tasks."""
    return numerical_environment(
        accelerator=given.accelerator, threads=given.cpus_per_task, slots=given.rows
    )


def run_tasks(
    given: ExternalOptions, tasks: Sequence[EvaluationTask], records: Records, reporter: Reporter
) -> list[EvaluationTask]:
    """Evaluate what is not committed yet, as Ray tasks, and return the tasks of the result.

    These are all of them, or with --stop-when-width the first ones: as many as that width needed.
    """
    committed = Committed(tasks, records)
    before = committed.look()
    reused = committed.count
    if reused < len(tasks) and not _enough(given, before):
        with on_ray(given, reporter):
            follow(
                _started(given, tasks, records),
                reporter.stage("evaluate", len(tasks), at_most=given.stop_when_width is not None),
                done=committed.progress,
            )
    found = committed.look()
    computed = committed.count - reused
    reporter.say(f"{committed.count:,} shards: {computed} computed, {reused} reused")
    used = committed.without_gap()
    if len(used) < len(tasks):
        reporter.say(f"stopped at the width of --stop-when-width: {found}")
    return list(used)


def _enough(given: ExternalOptions, found: SoFar) -> bool:
    return given.stop_when_width is not None and found.narrow(given.stop_when_width)


def _started(given: ExternalOptions, tasks: Sequence[EvaluationTask], records: Records) -> Any:
    """Start the tasks that are not committed, and return the reference to follow."""
    from sat_ray.integrations.ray.tasks import evaluate_all, evaluate_until_narrow, stage_task

    if given.stop_when_width is None:
        return stage_task(evaluate_all, tasks, records, given.resources, name="evaluate")
    work = partial(evaluate_until_narrow, width=given.stop_when_width)
    return stage_task(work, tasks, records, given.resources, name="evaluate")


def records_of(tasks: Iterable[EvaluationTask], records: Records) -> Iterator[Record]:
    """Read the records of tasks that are all committed, one at a time."""
    for task in tasks:
        record = records.find(EVALUATE, task.key)
        assert record is not None
        yield record


@contextmanager
def on_ray(given: ExternalOptions, reporter: Reporter) -> Iterator[None]:
    """Connect to a Ray that has room for the tasks."""
    from sat_ray.integrations.ray.nodes import node_groups
    from sat_ray.integrations.ray.session import ray_session

    with ray_session() as which:
        reporter.say(f"Ray: {which}")
        check_room(
            [
                Demand(
                    stage="evaluate",
                    field="--cpus-per-task",
                    resources=given.resources.evaluation(),
                )
            ],
            node_groups(),
        )
        yield


def follow(ref: Any, progress: StageProgress, *, done: Callable[[], tuple[int, str]]) -> Any:
    """Wait for a stage, show its progress, and return its result.

    done: returns the number of finished tasks and a note about them.
    """
    from sat_ray.integrations.ray.tasks import result, wait

    while not wait(ref, seconds=POLL_SECONDS):
        count, note = done()
        progress.update(count, [], note=note)
    answer = result(ref)
    progress.end()
    return answer
