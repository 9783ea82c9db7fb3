"""The evaluation of a model made elsewhere as Ray tasks: one per shard, each committed once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.report.console import Reporter, StageProgress
from sat_ray.sweep.plan import shard_bounds
from sat_ray.sweep.records.store import Record, Records, numerical_environment
from sat_ray.sweep.resources import Demand, check_room, evaluation_resources
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
            cascade=given.attack == "cascade",
            first=first,
            last=last,
            split=given.split,
            sample=subject.sample,
            seed=given.seed,
            slots=given.slots,
            dataset=subject.dataset,
            environment=environment_of(given),
            label_order=subject.label_order,
        )
        for first, last in shard_bounds(subject.n, given.images_per_shard(subject.n))
    ]


def environment_of(given: ExternalOptions) -> dict[str, Any]:
    """Return the numerical environment of the tasks."""
    return numerical_environment(
        accelerator=given.accelerator, threads=given.cpus_per_task, slots=given.slots
    )


def run_tasks(
    given: ExternalOptions, tasks: Sequence[EvaluationTask], records: Records, reporter: Reporter
) -> None:
    """Evaluate what is not committed yet, as Ray tasks; all is committed when this returns."""
    missing = [task for task in tasks if records.find(EVALUATE, task.key) is None]
    if missing:
        from sat_ray.integrations.ray.tasks import evaluate_all, stage_task

        with on_ray(given, reporter):
            ref = stage_task(evaluate_all, missing, records, given.resources, name="evaluate")
            waiting = {task.key for task in missing}
            follow(
                ref,
                reporter.stage("evaluate", len(tasks)),
                done=lambda: len(tasks) - len(waiting.difference(records.keys(EVALUATE))),
            )
    reporter.say(
        f"{len(tasks):,} shards: {len(missing)} computed, {len(tasks) - len(missing)} reused"
    )


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
                    resources=evaluation_resources(given.resources),
                )
            ],
            node_groups(),
        )
        yield


def follow(ref: Any, progress: StageProgress, *, done: Callable[[], int]) -> Any:
    """Wait for a stage, show its progress, and return its result. done: counts finished tasks."""
    from sat_ray.integrations.ray.tasks import result, wait

    while not wait(ref, seconds=POLL_SECONDS):
        progress.update(done(), [])
    answer = result(ref)
    progress.end()
    return answer
