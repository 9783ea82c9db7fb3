"""Recipes for Fashion-MNIST: a study for CPUs, and a ResNet-18 for a GPU."""

from sat_ray.evaluation.card.settings import CardSettings
from sat_ray.sweep.config import (
    DataSettings,
    EvaluationSettings,
    FinalSettings,
    ModelSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.sweep.recipes.parts import gpus
from sat_ray.threat import ThreatModel
from sat_ray.training.settings import TrainingSettings

FASHION_ACTIVATIONS = ("relu", "silu:1", "gelu_learned", "silu_learned", "parametric_softplus:10")


def fashion_mnist() -> SweepConfig:
    """Run the study on Fashion-MNIST at epsilon 0.1: real images, five seeds, hours on 2 cores.

    The same command goes on where it stopped.

    The images come from Debian's package dataset-fashion-mnist, from --data.path or by
    --data.download. Certified L-infinity methods reach 79.2 % at this epsilon with far more work;
    four epochs do not. Question and tests: docs/explanation/studies.md. Trained in bf16 where the
    processor has it (`--training.precision bf16`) it takes two thirds of the time.
    """
    return SweepConfig(
        recipe="fashion_mnist",
        threat_model=ThreatModel("linf", 0.1),
        data=DataSettings(dataset="fashion_mnist", rows_per_shard=5000),
        model=ModelSettings(name="small_resnet", width=16),
        training=TrainingSettings(
            epochs=4,
            global_batch_size=128,
            batchnorm_group_size=64,
            learning_rate=0.1,
            attack_steps=2,
            attack_step_size=0.05,  # PGD-1 and longer steps teach silu to hide its gradients
            validate_every=4,
            validation_targets=1,
        ),
        search=SearchSettings(activations=FASHION_ACTIVATIONS, pairs=(), rungs=(1,)),
        final=FinalSettings(seeds=(0, 1, 2, 3, 4)),
        evaluation=EvaluationSettings(
            steps=200,
            step_size=0.005,
            strong_steps=20,
            strong_targets=4,
            slots=128,
            shard_size=500,
            images=1000,
        ),
        card=CardSettings(
            images=500, restarts=3, cascade_steps=20, cascade_queries=500, candidates=1
        ),
    )


def fashion_mnist_resnet18() -> SweepConfig:
    """Run the comparison of `fashion_mnist` with a ResNet-18, bf16, PGD-3: minutes on one GPU."""
    return SweepConfig(
        recipe="fashion_mnist_resnet18",
        threat_model=ThreatModel("linf", 0.1),
        data=DataSettings(dataset="fashion_mnist", rows_per_shard=5000),
        model=ModelSettings(name="resnet18", stem="small"),
        training=TrainingSettings(
            epochs=10,
            global_batch_size=256,
            batchnorm_group_size=128,
            learning_rate=0.2,
            precision="bf16",
            attack_steps=3,
            attack_step_size=0.05,
            validate_every=10,
        ),
        search=SearchSettings(activations=FASHION_ACTIVATIONS, pairs=(), rungs=(1, 2)),
        evaluation=EvaluationSettings(steps=200, step_size=0.005, slots=512, shard_size=5000),
        resources=gpus(workers=1),
    )
