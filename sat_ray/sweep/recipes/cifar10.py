"""Recipes for CIFAR-10."""

from sat_ray.sweep.config import (
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.sweep.recipes.parts import PAPER_ACTIVATIONS, gpus
from sat_ray.threat import ThreatModel
from sat_ray.training.settings import TrainingSettings


def cifar10_resnet18() -> SweepConfig:
    """Compare the paper's activations on CIFAR-10 with a ResNet-18 at epsilon 8/255, on one GPU.

    Give the archive with --data.path.

    Trained with PGD-10 and not PGD-1, which is prone to catastrophic overfitting at this epsilon,
    on random crops and flips. No figure of the paper for this setting is known here.
    """
    return SweepConfig(
        recipe="cifar10_resnet18",
        threat_model=ThreatModel("linf", 8 / 255),
        data=DataSettings(dataset="cifar10", rows_per_shard=5000),
        model=ModelSettings(name="resnet18", stem="small"),
        training=TrainingSettings(
            epochs=30,
            global_batch_size=128,
            batchnorm_group_size=128,
            augmentation="crop_flip",
            learning_rate=0.2,
            warmup_epochs=5,
            attack_steps=10,
            attack_step_size=2 / 255,
            validate_every=3,
        ),
        search=SearchSettings(
            activations=(*PAPER_ACTIVATIONS, "parametric_softplus:2,5,20"), rungs=(5,)
        ),
        evaluation=EvaluationSettings(steps=200, step_size=1 / 255, slots=256, shard_size=2000),
        resources=gpus(workers=1),
    )


def cifar10_wrn28_10_extra() -> SweepConfig:
    """Train a WideResNet-28-10 on CIFAR-10 and a million generated images, on 4 GPUs.

    Give the archive with --data.path and the generated images, an .npz file, with
    --data.extra-path; docs/how-to/augment-and-add-data.md says how to make one.

    From Wang et al. 2023 (ICML, arXiv:2302.04638) and the scripts released with it: SiLU, TRADES
    with beta 5, PGD-10 with step 2/255, 70 % generated images in each batch of 512, learning rate
    0.2 in one cycle, weight decay 5e-4, label smoothing 0.1, average of the weights with decay
    0.995, crops and flips. Its epoch is 50,000 images of both kinds and it has 400 of them; here an
    epoch is a pass over the 49,000 images of CIFAR-10's train split, 165,000 images in all, so 120
    epochs see as many. Not the paper's: ReLU beside SiLU; groups of 128 images, of which 90
    (70.3 %) are generated; 1,000 images are held out for validation. Nobody has run this recipe
    here.
    """
    return SweepConfig(
        recipe="cifar10_wrn28_10_extra",
        threat_model=ThreatModel("linf", 8 / 255),
        data=DataSettings(dataset="cifar10", rows_per_shard=5000, extra="npz", extra_share=0.7),
        model=ModelSettings(name="wide_resnet28_10"),
        training=TrainingSettings(
            epochs=120,
            global_batch_size=512,
            batchnorm_group_size=128,
            augmentation="crop_flip",
            learning_rate=0.2,
            schedule="one_cycle",
            warmup_epochs=3,
            label_smoothing=0.1,
            ema_decay=0.995,
            objective="trades",
            trades_beta=5.0,
            attack_steps=10,
            attack_step_size=2 / 255,
            validate_every=5,
        ),
        search=SearchSettings(activations=("relu", "silu:1"), pairs=(), rungs=(1,)),
        evaluation=EvaluationSettings(
            steps=200,
            step_size=1 / 255,
            strong_steps=100,
            strong_targets=9,
            slots=256,
            shard_size=2000,
        ),
        resources=gpus(workers=4),
    )
