"""Settings of what a sweep trains: the images and the network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from sat_ray.data.choices import Loading
from sat_ray.data.images import ENCODINGS, LARGEST_SIDE, Storing
from sat_ray.data.shards.test_images import TestImages
from sat_ray.data.sources.base import EXTRA, Source
from sat_ray.data.sources.registry import dataset_source
from sat_ray.models.architectures.timm_names import is_timm
from sat_ray.models.spec import (
    STEMS,
    PatchSize,
    check_model_name,
    check_patch_size,
    check_zero_gamma,
)
from sat_ray.storage.uris import SCHEME, check_place
from sat_ray.utils.bounds import BelowOne, Bounds, Count, Share, Width, check_fields
from sat_ray.utils.names import check_name
from sat_ray.utils.serialization import fields_in_use, to_json


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    dataset: str = "digits"
    """Name of a dataset in sat_ray/data/sources/registry.py, or module:function of your own
    (docs/reference/user-defined.md)."""
    path: str = ""
    """Folder of the images as they were downloaded: s3://bucket/folder, or a local one that is the
    same on every node that prepares them; not needed once they are prepared."""
    download: bool = False
    """Fetch the official files of mnist, fashion_mnist, cifar10 or cifar100 where they are not
    there, into data.path, or without one into ~/.cache/sat_ray; torchvision's checksums are
    checked."""
    image_size: Annotated[int, Bounds(0, LARGEST_SIDE)] = 0
    """Side of the stored squares: the short side is resized to it and the centre kept; 0 leaves
    images as they are."""
    encoding: Literal["raw", "jpeg"] = "raw"
    """How images that come in files are stored: raw pixels, or jpeg (quality 92, full colour) in
    about a tenth of the space."""
    test_crop: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Share of the short side that the stored squares of test images are: 0.875 for ImageNet's
    published figures, resized to 256 and cut to 224. Test images are never compressed."""
    test_list: str = ""
    """File with the names of test images, one a line (IMAGE or CLASS/IMAGE): only these are the
    test split. Local, or s3://."""
    corrupt_share: BelowOne = 0.0
    """Share of the images that may be unreadable: they are left out and listed in the manifest."""
    enlarged_share: Share = 0.0
    """Share of the images whose short side may be less than image_size: they are enlarged, which
    adds work and no detail."""
    rows_per_shard: Count = 512
    """Images in one Parquet shard."""
    loading: Loading = "auto"
    """Where training takes images from: resident (memory, the accelerator's where there is one),
    streaming (the shards, decoded ahead of use), or auto: streaming above 4 GiB of pixels. The
    images are the same."""
    extra: str = ""
    """A second dataset, named as dataset is, whose train split is trained on as well: more or
    generated images, labelled or pseudo-labelled, of the same shape and classes; for example npz.
    Nothing else is taken from it."""
    extra_path: str = ""
    """Where the extra images are, as path."""
    extra_share: BelowOne = 0.0
    """Share of every batch that is extra images, the same in each BatchNorm group. An epoch stays a
    pass over the train split."""

    def __post_init__(self) -> None:
        check_place(self.path, field="data.path")
        check_name(self.encoding, ENCODINGS, field="data.encoding")
        check_name(self.loading, get_args(Loading), field="data.loading")
        check_fields(self, prefix="data.")
        source = dataset_source(self.dataset)
        self._check_download(source)
        self._check_extra(source)
        self._check_test(source)
        if not source.encoded and (self.image_size or self.encoding != "raw"):
            raise ValueError(
                f"data.image_size and data.encoding must be 0 and raw for {self.dataset}, "
                f"got {self.image_size} and {self.encoding}; its images are stored as they are"
            )

    def _check_test(self, source: Source) -> None:
        """Raise ValueError where test images cannot be cut, or chosen by name."""
        check_place(self.test_list, field="data.test_list")
        if not source.encoded and (self.test_crop != 1 or self.test_list):
            raise ValueError(
                f"data.test_crop and data.test_list must be 1 and empty for {self.dataset}, got "
                f"{self.test_crop:g} and {self.test_list!r}; its images are no files with names"
            )
        if self.test_crop != 1 and not self.image_size:
            raise ValueError(
                f"data.test_crop must be 1 without data.image_size, got {self.test_crop:g}; "
                "give --data.image-size N"
            )

    def _check_download(self, source: Source) -> None:
        """Raise ValueError where there is nothing to download, or no folder to download it to."""
        if self.download and not source.downloader:
            raise ValueError(
                f"data.download must be False for {self.dataset}, got True: "
                "only mnist, fashion_mnist, cifar10 and cifar100 can be downloaded"
            )
        if self.download and self.path.startswith(SCHEME):
            raise ValueError(
                f"data.path must be a local folder with --data.download, got {self.path}; "
                "download into a local folder and copy it"
            )

    def _check_extra(self, source: Source) -> None:
        """Raise ValueError where the settings of extra images do not fit together or the images."""
        check_place(self.extra_path, field="data.extra_path")
        if bool(self.extra) != bool(self.extra_share) or (self.extra_path and not self.extra):
            raise ValueError(
                "data.extra and data.extra_share must be given together, got "
                f"{self.extra or 'no dataset'} and {self.extra_share:g}; for example "
                "--data.extra npz --data.extra-path FILE --data.extra-share 0.5"
            )
        if not self.extra:
            return
        extra = dataset_source(self.extra, field=EXTRA)
        shapes = (source.shape, extra.shape)
        if None not in shapes and shapes[0] != shapes[1]:
            raise ValueError(
                f"data.extra must have images of the shape of {self.dataset}, {shapes[0]}, "
                f"got {self.extra}, {shapes[1]}"
            )
        counts = (source.classes, extra.classes)
        if 0 not in counts and counts[0] != counts[1]:
            raise ValueError(
                f"data.extra must have the {counts[0]} classes of {self.dataset}, "
                f"got {self.extra}, which has {counts[1]}"
            )

    def extra_data(self) -> "DataSettings | None":
        """Return the settings of the extra images, which are stored as the others are; or None."""
        if not self.extra:
            return None
        encoded = dataset_source(self.extra).encoded
        return replace(
            self,
            dataset=self.extra,
            path=self.extra_path,
            download=False,
            image_size=self.image_size if encoded else 0,
            encoding=self.encoding if encoded else "raw",
            test_crop=1.0,
            test_list="",
            extra="",
            extra_path="",
            extra_share=0.0,
        )

    def storing(self) -> Storing:
        """Return how images that come in files are stored."""
        return Storing(image_size=self.image_size, encoding=self.encoding)

    def test_images(self) -> TestImages:
        """Return which test images are stored, and how."""
        resize = round(self.image_size / self.test_crop) if self.test_crop != 1 else 0
        return TestImages(resize=resize, names=self.test_list)

    def shape(self) -> tuple[int, int, int] | None:
        """Return (C, H, W) of the images as they will be stored.

        None where only reading the images shows it.
        """
        if self.image_size:
            return (3, self.image_size, self.image_size)
        return dataset_source(self.dataset).shape

    def identity(self) -> dict[str, Any]:
        """Return what says which images these are, as JSON.

        The place of a known dataset does not matter; an image folder is its path.
        """
        dropped = {"corrupt_share", "download", "enlarged_share", "loading"}
        dropped |= {"extra", "extra_path", "extra_share"}  # another dataset beside this one
        if not dataset_source(self.dataset).anonymous:
            dropped.add("path")
        in_use = fields_in_use(self, added={"test_crop", "test_list"})
        found = {name: to_json(value) for name, value in in_use.items() if name not in dropped}
        # with jpeg an earlier version compressed test images too: those shards are others
        return found | ({"test_encoding": "raw"} if self.encoding != "raw" else {})

    def semantic(self) -> dict[str, Any]:
        """Return what determines the training images, the extra ones included, as JSON."""
        more = self.extra_data()
        if more is None:
            return self.identity()
        return self.identity() | {"extra": more.identity(), "extra_share": self.extra_share}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network; its activation is what the sweep varies."""

    name: str = "small_resnet"
    """A residual network (resnet50, resnext50_32x8d, ...), an EfficientNet (efficientnet_b0 to b7,
    efficientnet_l1), a network for 32-pixel images (preact_resnet18, wide_resnet28_10,
    wide_resnet34_10), small_resnet, timm:NAME (timm:convnext_tiny, timm:vit_small_patch16_224, any
    other of the package timm), or module:function of your own."""
    width: Width = 12
    """Channels of the first layer of small_resnet, or of a network of your own that takes it; the
    others have widths of their own."""
    stem: str = "imagenet"
    """First layer of residual networks: imagenet (7x7, stride 2) or small (3x3, stride 1, for
    32-pixel images); of EfficientNets: stride 2 or 1; of timm's networks small gives the first
    convolution a stride of 1 and removes a max-pooling behind it."""
    zero_gamma: bool = False
    """Start the last BatchNorm of each block at 0."""
    patch_size: PatchSize = 0
    """Side of the patches that a network of timm cuts images into; 0 for the network's own."""
    initial_weights: str = ""
    """Weights to start from: a file (.safetensors, .pt, .pth) or the folder of a checkpoint, local
    (the same on every node that trains) or on s3://, or timm:pretrained, or timm:TAG for others of
    timm's. A last layer for other classes starts anew."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="model.")
        check_model_name(self.name, field="model.name")
        check_name(self.stem, STEMS, field="model.stem")
        check_zero_gamma(self.name, self.zero_gamma)
        check_patch_size(self.name, self.patch_size)
        check_place(self.initial_weights, field="model.initial-weights")
        if is_timm(self.initial_weights) and not is_timm(self.name):
            raise ValueError(
                f"model.initial-weights must be a file or a checkpoint for {self.name}, got "
                f"{self.initial_weights}: timm has weights for its own networks (timm:NAME) only"
            )

    def of_timm(self, shape: Sequence[int]) -> dict[str, Any]:
        """Return the fields of a `ModelSpec` that only networks of timm have.

        shape: (C, H, W) of the images.
        """
        if not is_timm(self.name):
            return {}
        return {"image_size": tuple(shape[1:]), "patch_size": self.patch_size}
