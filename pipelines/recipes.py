"""Recipes: functions that return a full config. Add one here and it is a word of the command line."""

from sat_ray.cli import Recipe
from sat_ray.config import DataSettings, EvaluationSettings, FinalSettings, ModelSettings, SearchSettings, SweepConfig
from sat_ray.threat import ThreatModel
from sat_ray.training_settings import TrainingSettings

DEFAULT = "digits"


def digits() -> SweepConfig:
    """Sweep every activation on scikit-learn's 1,797 handwritten digits: minutes on a laptop, the whole pipeline for real."""
    return SweepConfig(
        recipe="digits",
        threat_model=ThreatModel("linf", 64 / 255),
        data=DataSettings(dataset="digits"),
        model=ModelSettings(name="small_resnet", width=8),
        training=TrainingSettings(epochs=10, global_batch_size=64, batchnorm_group_size=32, learning_rate=0.2),
        search=SearchSettings(method="grid", rungs=(2, 5)),
        final=FinalSettings(seeds=(0, 1, 2)),
        evaluation=EvaluationSettings(steps=200, step_size=4 / 255, lanes=96, shard_size=900),
    )


def digits_smoke() -> SweepConfig:
    """Run every stage on digits with three configurations and short trainings: about a minute, for trying things out."""
    return SweepConfig(
        recipe="digits_smoke",
        threat_model=ThreatModel("linf", 64 / 255),
        model=ModelSettings(name="small_resnet", width=8),
        training=TrainingSettings(epochs=3, validate_every=1, warmup_epochs=1),
        search=SearchSettings(activations=("relu", "parametric_softplus:5,10"), pairs=("relu/relu_smooth_backward",), rungs=(1, 2)),
        final=FinalSettings(seeds=(0, 1)),
        evaluation=EvaluationSettings(steps=20, step_size=8 / 255, lanes=64, shard_size=450),
    )


RECIPES: dict[str, Recipe] = {"digits": digits, "digits_smoke": digits_smoke}
