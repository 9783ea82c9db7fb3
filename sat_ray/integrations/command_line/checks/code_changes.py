"""What is done with results of other code: refuse to start, reuse them, or move them aside."""

from collections.abc import Iterable

from sat_ray.report.console import Reporter
from sat_ray.sweep.records.store import Record, Records, Stage, changed_modules


def settle_code_changes(
    records: Records,
    committed: Iterable[tuple[Stage, Record]],
    *,
    choice: str,
    reporter: Reporter,
    made: str = "results",
    by: str = "made",
) -> None:
    """Apply `choice` (refuse, reuse or rerun) to the committed records whose code has changed.

    made, by: what the records are called in messages, as in "results made by other code".
    Raises ValueError, which names modules and choices.
    """
    changed = [
        (record, names) for stage, record in committed if (names := changed_modules(record, stage))
    ]
    if not changed or choice == "reuse":
        return
    modules = ", ".join(sorted({name for _, names in changed for name in names}))
    if choice == "refuse":
        raise ValueError(
            f"{len(changed)} {made} in {records.storage.uri} were {by} by other code "
            f"({modules} changed); choose --on-code-change reuse (keep them) or rerun "
            "(compute anew, old ones moved to superseded/)"
        )
    for record, _ in changed:
        records.supersede(record)
    reporter.say(f"moved {len(changed)} {made} {by} by other code to superseded/")
