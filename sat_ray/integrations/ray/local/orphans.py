"""What an attempt at a stage leaves behind in Ray when its process is killed."""

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from sat_ray.integrations.ray.private import ended_jobs


def remove_orphans() -> None:
    """Remove what a killed attempt at a stage reserved: Ray keeps it until the driver ends.

    The next attempt would wait for it. Of all stages only search and training reserve anything, one
    after the other, so what this task holds when a stage begins is left over. A group's id ends in
    its job's. A head that starts again from its state in Redis also keeps what ended jobs
    reserved; groups with a name may be meant to outlive their job, and stay.
    """
    job, ended = ray.get_runtime_context().get_job_id(), ended_jobs()
    for name, group in ray.util.placement_group_table().items():
        left = name.endswith(job) or (name.endswith(ended) and not group["name"])
        if left and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
