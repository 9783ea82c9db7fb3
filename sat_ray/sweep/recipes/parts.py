"""What several recipes have in common."""

from sat_ray.sweep.config.resources import ResourceSettings

PAPER_ACTIVATIONS = (  # its activation figure
    *("relu", "parametric_softplus:10", "softplus", "smoothrelu_learned"),
    *("gelu:1", "elu:1", "silu:1"),
)


def gpus(*, workers: int) -> ResourceSettings:
    """Return the resources of a recipe that was made for GPUs: one for each worker and task."""
    return ResourceSettings(
        train_workers=workers,
        cpus_per_worker=8,
        gpus_per_worker=1,
        cpus_per_trial=8,
        gpus_per_trial=1,
        cpus_per_evaluation=4,
        gpus_per_evaluation=1,
        accelerator="H200",
    )
