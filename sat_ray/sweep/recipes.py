"""Recipes: functions that return a full config.

Add one here and it is a word of the command line.
"""

from sat_ray.evaluation.card.settings import CardSettings
from sat_ray.sweep.config import (
    DataSettings,
    EvaluationSettings,
    FinalSettings,
    ModelSettings,
    Recipe,
    ResourceSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.sweep.imagenet_ladder import ladder
from sat_ray.threat import ThreatModel
from sat_ray.training.settings import TrainingSettings

DEFAULT = "digits"
PAPER_ACTIVATIONS = (  # its activation figure
    *("relu", "parametric_softplus:10", "softplus", "smoothrelu_learned"),
    *("gelu:1", "elu:1", "silu:1"),
)
FAMILIES = ("relu", "silu", "gelu", "parametric_softplus", "smoothrelu")
STUDIED = (*FAMILIES, "mish", "celu", "elu:1", "silu_learned", "gelu_learned", "smoothrelu_learned")
FASHION_ACTIVATIONS = ("relu", "silu:1", "gelu_learned", "silu_learned", "parametric_softplus:10")


def digits() -> SweepConfig:
    """Search four smooth families and relu on handwritten digits: minutes on a laptop.

    The whole pipeline runs, on the 1,797 images of scikit-learn.

    Epsilon 24/255 and PGD-3 in training, because PGD-200 is then within 2 points of the strong
    number for every network that was tried on validation images, from relu to x sigmoid(32 x); with
    PGD-1 or at 32/255 it is not, at 64/255 it was 12 to 18 points too high
    (docs/explanation/studies.md).
    Strong attacks of 20 steps towards 4 classes break there what AutoAttack's budget breaks. Seven
    seeds and four comparisons; the leaderboard says which difference that lets it see.
    """
    return SweepConfig(
        recipe="digits",
        threat_model=ThreatModel("linf", 24 / 255),
        data=DataSettings(dataset="digits"),
        model=ModelSettings(name="small_resnet", width=8),
        training=_digits_training(epochs=10),
        search=SearchSettings(method="grid", activations=FAMILIES, pairs=(), rungs=(5,)),
        final=FinalSettings(seeds=tuple(range(7))),
        evaluation=_digits_evaluation(),
    )


def _digits_training(*, epochs: int) -> TrainingSettings:
    return TrainingSettings(
        epochs=epochs,
        global_batch_size=64,
        batchnorm_group_size=32,
        learning_rate=0.2,
        attack_steps=3,
        validate_every=epochs,
    )


def _digits_evaluation() -> EvaluationSettings:
    return EvaluationSettings(
        steps=200, step_size=2 / 255, strong_steps=20, strong_targets=4, slots=96, shard_size=900
    )


def digits_smoke() -> SweepConfig:
    """Run every stage on digits, three configurations, short trainings: a minute, to try it out.

    The ball is small, so that PGD-100 and the short strong attacks break nearly all that
    AutoAttack's budget breaks.
    """
    return SweepConfig(
        recipe="digits_smoke",
        threat_model=ThreatModel("linf", 16 / 255),
        model=ModelSettings(name="small_resnet", width=8),
        training=TrainingSettings(epochs=3, validate_every=1, warmup_epochs=1),
        search=SearchSettings(
            activations=("relu", "parametric_softplus:5,10"),
            pairs=("relu/relu_smooth_backward",),
            rungs=(1, 2),
        ),
        final=FinalSettings(seeds=(0, 1)),
        evaluation=EvaluationSettings(
            steps=100,
            step_size=2 / 255,
            slots=64,
            shard_size=450,
            strong_steps=20,
            strong_targets=3,
        ),
        card=CardSettings(images=48, restarts=2, cascade_steps=5, cascade_queries=50, candidates=1),
    )


def study() -> SweepConfig:
    """Run the study on digits: every family at the alpha that validation chooses, ten seeds.

    It trains 15 epochs and takes an hour or two on 2 cores.

    Its question, tests and what would refute the paper's claim were written down before it ran:
    docs/explanation/studies.md.
    """
    return SweepConfig(
        recipe="study",
        threat_model=ThreatModel("linf", 24 / 255),
        data=DataSettings(dataset="digits"),
        model=ModelSettings(name="small_resnet", width=8),
        training=_digits_training(epochs=15),
        search=SearchSettings(
            activations=STUDIED,
            pairs=(),
            rungs=(15,),
            seeds=(100, 101, 102, 103),  # none of the final seeds
        ),
        final=FinalSettings(seeds=tuple(range(10))),
        evaluation=_digits_evaluation(),
        card=CardSettings(restarts=3, cascade_steps=20, cascade_queries=500, candidates=1),
    )


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
        resources=_gpus(workers=1),
    )


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
        resources=_gpus(workers=1),
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
        resources=_gpus(workers=4),
    )


def imagenet_resnet50() -> SweepConfig:
    """Run the paper's Table 1 and activation figure: ResNet-50 on ImageNet, epsilon 4/255, 8 GPUs.

    Give the data with --data.path.

    100 epochs, learning rate / 10 at 30, 60 and 90 [C]; the rest is what the released code
    inherits: 0.1 per 256 images, 5 warm-up epochs, weight decay 1e-4, label smoothing 0.1 in the
    update alone, last BatchNorm of each block started at 0. PGD-1 with step epsilon [A, C]. Not the
    paper's: images are stored as 224-pixel centre crops, the few smaller ones enlarged as everybody
    does, and training cuts and enlarges random parts of them. Test images are those of published
    figures: short side resized to 256, the centre of 224 cut, not compressed.

    What the paper reports, clean / robust under PGD-200, in per cent; references, not results of
    this project:
        relu 68.80 / 33.00 · parametric_softplus(10) 68.80 / 38.70 · softplus 68.36 / 40.00 ·
        smoothrelu_learned 69.40 / 40.30 ·
        gelu 69.95 / 41.65 · elu(1) 69.20 / 41.70 · silu 69.73 / 42.30 [P];
        relu with a smooth backward pass for the attacker alone 68.3 / 34.5 [A].
    [P] the paper's abstract or its figure, digitised to 0.02 · [C] the authors' released code ·
    [A] an article about the paper. The paper scores the last iterate alone; here that is the attack
    pgd-200-final, beside the stricter one that counts every point.

    """
    return SweepConfig(
        recipe="imagenet_resnet50",
        threat_model=ThreatModel("linf", 4 / 255),
        data=DataSettings(
            dataset="imagenet",
            image_size=224,
            encoding="jpeg",
            test_crop=0.875,
            corrupt_share=1e-4,
            enlarged_share=1.0,
            rows_per_shard=2048,
        ),
        model=ModelSettings(name="resnet50", zero_gamma=True),
        training=TrainingSettings(
            epochs=100,
            global_batch_size=1024,
            batchnorm_group_size=128,
            augmentation="resized_crop_flip",
            learning_rate=0.4,
            weight_decay=1e-4,
            label_smoothing=0.1,
            schedule="step",
            warmup_epochs=5,
            validate_every=10,
        ),
        search=SearchSettings(activations=PAPER_ACTIVATIONS, rungs=(1,)),
        evaluation=EvaluationSettings(
            steps=200, step_size=1 / 255, final_iterate=True, slots=256, shard_size=2500
        ),
        resources=_gpus(workers=8),
    )


def imagenet_convnext_tiny() -> SweepConfig:
    """Compare activations in timm's ConvNeXt-T on ImageNet, epsilon 4/255, 50 epochs, 8 GPUs.

    Give the data with --data.path. The release starts from a network that was trained on clean
    images: --model.initial-weights timm:pretrained.

    From the code released with Singh, Croce and Hein 2023 (arXiv:2303.01870): AdamW with 1e-3 and
    betas 0.9 and 0.95, weight decay 0.05 on matrices alone, cosine after 10 warm-up epochs, two
    steps of attack, 80 images per GPU, RandAugment of magnitude 9, random erasing 0.25, MixUp 0.8,
    CutMix 1, label smoothing 0.1, average of the weights with decay 0.9999, half precision. Not
    theirs: PGD instead of APGD, the network's own stem instead of convolutions, 50 epochs as for
    their larger networks and not 300, the number of GPUs, which they do not give, and the
    activations beside GELU.

    Their README gives 72.7 / 49.5 % clean / under AutoAttack for ConvNeXt-T with their stem after
    300 epochs: a reference, not a result of this project. Nobody has run this recipe here.
    """
    return _imagenet_of_timm("imagenet_convnext_tiny", model="timm:convnext_tiny")


def imagenet_vit_small() -> SweepConfig:
    """Compare activations in timm's ViT-S/16 on ImageNet, epsilon 4/255, 50 epochs, 8 GPUs.

    The settings are those of `imagenet_convnext_tiny`, which the release uses for both kinds; its
    README gives 72.5 / 48.1 % for ViT-S with a convolutional stem after 300 epochs: a reference,
    not a result of this project. Nobody has run this recipe here.
    """
    return _imagenet_of_timm("imagenet_vit_small", model="timm:vit_small_patch16_224")


def _imagenet_of_timm(recipe: str, *, model: str) -> SweepConfig:
    base = imagenet_resnet50()
    return SweepConfig(
        recipe=recipe,
        threat_model=base.threat_model,
        data=base.data,
        model=ModelSettings(name=model),
        training=TrainingSettings(
            epochs=50,
            global_batch_size=640,
            batchnorm_group_size=80,
            augmentation="resized_crop_flip",
            randaugment=2,
            randaugment_magnitude=9,
            random_erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            optimizer="adamw",
            learning_rate=1e-3,
            adamw_beta2=0.95,
            weight_decay=0.05,
            ema_decay=0.9999,
            label_smoothing=0.1,
            schedule="cosine",
            warmup_epochs=10,
            precision="bf16",
            attack_steps=2,
            validate_every=5,
        ),
        search=SearchSettings(activations=("gelu:1", "relu", "silu:1"), pairs=(), rungs=(1,)),
        final=FinalSettings(seeds=(0,)),
        evaluation=base.evaluation,
        resources=base.resources,
    )


def _gpus(*, workers: int) -> ResourceSettings:
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


_OWN = (
    digits,
    digits_smoke,
    study,
    fashion_mnist,
    fashion_mnist_resnet18,
    cifar10_resnet18,
    cifar10_wrn28_10_extra,
    imagenet_resnet50,
    imagenet_convnext_tiny,
    imagenet_vit_small,
)
RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in _OWN} | ladder(
    imagenet_resnet50
)
