"""The user's own activation, network and dataset, by module:function: used as they are,
or refused in one line that teaches.
"""

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import changed
from trainings import train

from sat_ray.activations.registry import activation_info, make_activation
from sat_ray.attacks import AttackSpec
from sat_ray.checkpoint import load_model, save_model
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.reading import read_split
from sat_ray.data.sources.registry import DATASETS, dataset_source
from sat_ray.data.sources.user_defined import counted
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.integrations.command_line.checks.preflight import (
    check_user_defined_parts,
    export_warnings,
    user_defined_names,
)
from sat_ray.integrations.network_check import check_network
from sat_ray.models import ModelSpec, check_user_defined_model, model_from_spec, view
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, ModelSettings, SearchSettings
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.plan.evaluations import evaluation_tasks
from sat_ray.sweep.plan.trainings import training_task
from sat_ray.sweep.recipes.digits import digits_smoke
from sat_ray.sweep.records.store import Records, Stage, changed_modules
from sat_ray.sweep.search.search_space import SearchPoint, parse_choice
from sat_ray.sweep.tasks import TRAIN, Dataset
from sat_ray.threat import ThreatModel
from sat_ray.utils.code_hash import code_hashes
from sat_ray.utils.serialization import to_json
from sat_ray.utils.settings_json import from_json

TOY = Stage("toy", 1, ("sat_ray.utils.names",))
SPEC = ModelSpec(
    name="mypkg.nets:net", activation="mypkg.acts:my_swish", alpha=2.0, num_classes=2, width=4
)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


ACTIVATIONS = {
    "straight_through": "autograd gives 1, finite differences 0; a model that hides its derivative",
    "in_place": "changes its input in place",
    "softmax": "must act on each element alone",
    "explodes": "got inf at x = 100",
    "detached": "has no gradient",
    "staircase": "has a gradient of 0 everywhere",
    "noisy": "gives other values the second time",
    "mean": "shape and dtype, (4, 5, 6, 7) float32, got () float32",
    "two": "must be a function f(x) or f(x, alpha=1.0) of one tensor, ",
    "number": "made without arguments or with alpha=1.0, got a int",
    "counts": "must act on each element alone",
    "dividess": "has no dividess; did you mean divides",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_none_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_choice(f"own_parts:{name}", field="search.activations")
    text = one_line(error)
    assert text.startswith(f"activation own_parts:{name}") or f"own_parts:{name}" in text
    assert ACTIVATIONS[name] in text


def test_an_activation_is_checked_at_every_alpha_that_it_is_used_with() -> None:
    assert [
        one.alpha for one in parse_choice("own_parts:divides:1,2", field="search.activations")
    ] == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"at alpha=0 must be finite .* got -inf at x"):
        parse_choice("own_parts:divides:1,0", field="search.activations")


def test_a_name_of_the_registry_with_a_mistyped_alpha_is_not_taken_for_a_module() -> None:
    with pytest.raises(ValueError, match="an alpha must be a number, got 'ten'"):
        parse_choice("parametric_softplus:ten", field="search.activations")
    with pytest.raises(ValueError, match="module no_such cannot be imported"):
        parse_choice("no_such:f", field="search.activations")


@pytest.mark.parametrize("name", ["mypkg.acts:my_swish", "mypkg.acts:Leaky"])
def test_an_own_activation_and_its_derivative_are_those_of_its_formula(name: str) -> None:
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    alpha = activation_info(name).check_alpha(None)
    s = torch.sigmoid(x)
    expected, slope = (
        (x * s, s + x * s * (1 - s))
        if alpha
        else (torch.where(x > 0, x, 0.1 * x), torch.where(x > 0, 1.0, 0.1).double())
    )
    torch.testing.assert_close(make_activation(name).double()(x), expected)
    torch.testing.assert_close(activation_info(name).derivative(x, alpha), slope)


def test_what_a_search_tries_is_what_the_function_says_or_the_recipe() -> None:
    assert [one.alpha for one in parse_choice("mypkg.acts:my_swish", field="f")] == [1.0, 2.0, 4.0]
    assert [one.slug for one in parse_choice("mypkg.acts:my_swish:3", field="f")] == [
        "mypkg.acts.my_swish-a3"
    ]
    with pytest.raises(
        ValueError,
        match=r"must share its forward pass .* choose mypkg.acts:my_swish with the same alpha",
    ):
        SearchPoint(activation="mypkg.acts:my_swish", alpha=2.0, attacker_activation="relu")


MODELS = {
    "no_activation": "does not use its argument activation",
    "mixed": "holds a ReLU at body.4 that the sweep would not vary",
    "shared": "uses one module at several places",
    "probabilities": "returns probabilities",
    "other_classes": "must return (4, 10) float32 logits",
    "idle": "parameters without a gradient (body.0.extra.weight",
    "compiled": "must be a network that is not compiled",
    "in_a_list": "keeps modules in the list body.0.layers",
    "bound": "got a reference to itself (a bound method?)",
    "quantised": "has a gradient that is not its derivative",
    "of_the_batch": "gives an image other logits in a batch than alone",
    "other_images": "given float32 images of shape (4, 1, 8, 8), raised RuntimeError",
    "other_arguments": "does not take activation and needs depth",
    "nothing": "returned a NoneType",
    "scaled_probabilities": "returns values in [0, 1] whatever its weights are",
    "sigmoid": "returns values in [0, 1] whatever its weights are",
    "half": "; its parameters are float16: call .float() on the network before you return it",
    "lazy": "has a lazy layer (body.1.weight has no size yet)",
    "skips_a_layer": (
        "without a gradient in some passes (body.maybe.weight, body.maybe.bias), as stochastic "
        "depth"
    ),
    "seldom_skips": (
        "without a gradient in some passes (body.maybe.weight, body.maybe.bias), as stochastic "
        "depth"
    ),
    "holds_a_file": "cannot be copied (TypeError: cannot pickle '_io.TextIOWrapper'",
    "noise_of_a_seed": "gives an image other logits in a batch than alone",
    "plain_tensor": "gives other logits when its state dict is loaded into a new network",
    "unsaved_buffer": "gives other logits when its state dict is loaded into a new network",
    "by_chance": "starts from other weights under the same seed",
}


def check(name: str) -> None:
    """Check a network of `own_parts` as a sweep does."""
    normal = {"mean": (0.5,), "std": (0.5,)}
    spec = ModelSpec(name=f"own_parts:{name}", activation="silu", in_channels=1, **normal)
    check_user_defined_model(spec, (1, 8, 8))


@pytest.mark.parametrize("name", MODELS)
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError) as error:
        check(name)
    assert MODELS[name] in one_line(error)


@pytest.mark.parametrize(
    "name", ["old_weight_norm", "keeps_features", "drops_out", "holds_a_lock", "branches"]
)
def test_a_network_of_an_odd_kind_that_can_be_trained_is_accepted(name: str) -> None:
    check(name)


def test_a_file_that_a_network_reads_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "reading_net.py").write_text(
        "import numpy, pathlib\n"
        "from torch import nn\n"
        "HERE = pathlib.Path(__file__).parent\n"
        "def net(num_classes, activation, in_channels):\n"
        "    width = int(numpy.load(HERE / 'width.npy'))\n"
        "    parts = [nn.Conv2d(in_channels, width, 3), activation(), nn.Flatten()]\n"
        "    return nn.Sequential(*parts, nn.Linear(width * 36, num_classes))\n"
    )
    np.save(tmp_path / "width.npy", 4)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = changed("digits_smoke", model={"name": "reading_net:net"})
    check_network(config, 10, (1, 8, 8))
    assert f"model.name reading_net:net reads {tmp_path / 'width.npy'} while it" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"), [("branches", "data-dependent"), ("old_weight_norm", "")]
)
def test_a_network_that_cannot_be_exported_is_named_before_anything_is_trained(
    name: str, reason: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(digits_smoke(), model=ModelSettings(name=f"own_parts:{name}"))
    warnings = export_warnings(config, Storage.at(str(tmp_path)))
    assert len(warnings) == bool(reason) and not list(tmp_path.iterdir())
    if reason:
        assert (
            warnings[0].startswith(f"model own_parts:{name} cannot be exported (")
            and reason in warnings[0]
        )
        assert warnings[0].endswith("without a model in MLflow") and "\n" not in warnings[0]


def test_an_activation_that_cannot_be_exported_is_named_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    search = SearchSettings(activations=("relu", "own_parts:looks_at_values"), pairs=())
    (warning,) = export_warnings(
        dataclasses.replace(digits_smoke(), search=search), Storage.at(str(tmp_path))
    )
    assert warning.startswith("activation own_parts:looks_at_values cannot be exported (")


DATA = {
    "scaled": "before any scaling, got float64; write np.rint(images * 255)",
    "channels_last": "channels last; return images.transpose(0, 3, 1, 2)",
    "zeros_and_ones": "must have pixels from 0 to 255, got none above 1",
    "few": "images must be at least 20, got 5",
    "three_labels": "labels must lie in 0 to 1, got 1 to 2",
    "one_class": "images must include every class, got none with the label 1 (b)",
    "float_labels": "one per image, got float64",
    "pair": "class_names, as a tuple or a Raw, got a tuple",
    "broken": "raised KeyError: 'no such file'",
    "nothing": "got one that needs num_classes, activation",
}


@pytest.mark.parametrize("name", DATA)
def test_a_dataset_that_is_none_is_refused_in_one_line_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        check_user_defined_parts(
            dataclasses.replace(digits_smoke(), data=DataSettings(dataset=f"own_parts:{name}")),
            Storage.at(str(tmp_path)),
        )
    text = one_line(error)
    assert DATA[name] in text and not list(tmp_path.iterdir())


def test_a_tenth_is_held_out_where_no_split_is_official_and_every_image_is_in_one(
    tmp_path: Path,
) -> None:
    assert (
        counted(dataset_source("own_parts:good")).test,
        counted(dataset_source("own_parts:good")).val,
    ) == (2, 2)
    manifest = write_dataset(
        dataset_source("own_parts:good"), Storage.at(str(tmp_path)), rows_per_shard=10
    )
    assert (
        manifest["splits"] == {"train": 20, "val": 2, "test": 2}
        and manifest["dataset"] == "own_parts:good"
    )
    ids = torch.cat(
        [
            read_split(Storage.at(str(tmp_path)), split).image_ids
            for split in ("train", "val", "test")
        ]
    )
    assert sorted(ids.tolist()) == list(range(24))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Return the example's dataset as shards, under the name that a sweep would give it."""
    root = Storage.at(str(tmp_path_factory.mktemp("own")))
    write_dataset(
        dataset_source("mypkg.data:flowers"),
        Storage(dataset_uri(example_config(), root)),
        rows_per_shard=512,
    )
    return root


def example_config(**changes: object) -> object:
    return dataclasses.replace(
        digits_smoke(),
        threat_model=ThreatModel("linf", 8 / 255),
        data=DataSettings(dataset="mypkg.data:flowers"),
        model=ModelSettings(name="mypkg.nets:net"),
        search=SearchSettings(
            activations=("relu", "mypkg.acts:my_swish", "mypkg.acts:Leaky"), pairs=()
        ),
        **changes,
    )


def test_the_example_is_checked_trained_evaluated_and_loaded_again(
    flowers: Storage, tmp_path: Path
) -> None:
    check_user_defined_parts(example_config(), flowers)
    some = read_split(Storage(dataset_uri(example_config(), flowers)), "train")
    some = some.take(torch.randperm(len(some), generator=torch.Generator().manual_seed(0)))
    model = model_from_spec(SPEC, seed=0)
    # two steps of 32 images: `train` takes the first 64, and validates on a few later ones
    reports = train(model, Split(some.images, some.labels, some.image_ids), images=64, epochs=1)
    assert len(reports) == 1
    weights = model.eval().state_dict()
    assert any(
        not torch.equal(weights[name], value)
        for name, value in model_from_spec(SPEC, seed=0).state_dict().items()
    )
    attack = AttackSpec(threat_model=ThreatModel("linf", 8 / 255), steps=2, step_size=4 / 255)
    test = some.take(slice(100, 116))
    outcomes = evaluate(model, test.images, test.labels, test.image_ids, attacks=[attack], slots=16)
    assert (
        len(set(outcomes["image_id"].to_pylist())) == 16 and len(robust_image_ids(outcomes)) <= 16
    )
    save_model(Storage.at(str(tmp_path)), weights, spec=SPEC, about={})
    again = load_model(str(tmp_path))
    x = test.images.float() / 255
    assert again.spec == SPEC and torch.equal(view(again)(x), again(x))
    torch.testing.assert_close(again(x), model(x))


def test_the_config_of_the_example_survives_json_and_names_what_is_own() -> None:
    config = example_config()
    assert from_json(type(config), to_json(config)) == config
    assert user_defined_names(config) == [
        "mypkg.acts:Leaky",
        "mypkg.acts:my_swish",
        "mypkg.data:flowers",
        "mypkg.nets:net",
    ]
    assert user_defined_names(digits_smoke()) == []


def test_changed_code_of_ones_own_is_noticed_wherever_a_result_rests_on_it(
    flowers: Storage, tmp_path: Path
) -> None:
    package = tmp_path / "changing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("FACTOR = 1.0\n")
    (package / "acts.py").write_text(
        "from .helper import FACTOR\ndef act(x):\n    return FACTOR * x * x.sigmoid()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        config = example_config()
        dataset = Dataset.open(dataset_uri(config, flowers))
        assert dataset is not None
        own = SearchPoint(activation="changing.acts:act")
        task = training_task(config, dataset, own, stage=TOY, seed=0, training=config.training)
        records = Records(Storage.at(str(tmp_path / "sweep")))
        payload = {
            "name": task.name,
            "configuration": own.to_json(),
            "path": "none",
            "sha256": "none",
        }
        record = records.commit(
            task.stage, task.key, inputs=task.inputs, payload=payload, seconds=0.0
        )
        (shard, *_) = evaluation_tasks(config, dataset, record)
        expected = {"changing.acts", "changing.helper", "mypkg.data", "mypkg.nets"}
        assert (
            set(shard.inputs["own"])
            == {"changing.acts:act", "mypkg.data:flowers", "mypkg.nets:net"}
            == set(record.inputs["own"])
        )
        assert expected <= record.code.keys() and changed_modules(record, TOY) == []
        for text, noticed in (
            ("FACTOR = 1.0  # as before\n", []),
            ("FACTOR = 2.0\n", ["changing.helper"]),
        ):
            (package / "helper.py").write_text(text)
            importlib.invalidate_caches()
            code_hashes.cache_clear()
            assert changed_modules(record, TOY) == noticed
    finally:
        sys.path.remove(str(tmp_path))
        code_hashes.cache_clear()


def test_what_is_not_own_keeps_the_keys_that_it_had(flowers: Storage) -> None:
    data = Dataset.open(dataset_uri(example_config(), flowers))
    plain = Dataset(uri="u", hash="h", manifest={**data.manifest, "dataset": "digits"})
    task = training_task(
        digits_smoke(),
        plain,
        SearchPoint(activation="silu"),
        stage=TRAIN,
        seed=0,
        training=digits_smoke().training,
    )
    assert "own" not in task.inputs and DATASETS["digits"].name == "digits"


def test_a_dataset_whose_code_changed_is_prepared_anew(tmp_path: Path) -> None:
    module = tmp_path / "changing_data.py"
    module.write_text("from own_parts import good\nSIZE = 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        config = dataclasses.replace(
            digits_smoke(), data=DataSettings(dataset="changing_data:good")
        )
        root = Storage.at(str(tmp_path))
        before = dataset_uri(config, root)
        assert "changing_data.good-" in before
        module.write_text("from own_parts import good\nSIZE = 2\n")
        code_hashes.cache_clear()
        assert dataset_uri(config, root) != before
    finally:
        sys.path.remove(str(tmp_path))
        code_hashes.cache_clear()
