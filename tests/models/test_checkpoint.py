"""Checkpoints and training states on disk: what comes back is what was saved,
and nothing else is ever let in.
"""

import ast
import dataclasses
import hashlib
import json
import math
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import TENSORS

import sat_ray
from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.checkpoint import MODEL_JSON, MODEL_WEIGHTS, load_model, save_model
from sat_ray.models import Normalized, build_model
from sat_ray.storage.sealed import SEAL, sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.inputs import configuration_of
from sat_ray.training.catastrophic_overfitting import Memory
from sat_ray.training.loop import TrainingState
from sat_ray.training.resume.checkpointing import pack_state, unpack_state


def trained(activation: str = "relu", *, alpha: float | None = None) -> Normalized:
    """Build a model whose every weight and statistic differs from a fresh one's."""
    model = build_model(
        "small_resnet",
        activation=activation,
        alpha=alpha,
        num_classes=10,
        in_channels=1,
        width=8,
        seed=0,
    )
    noise = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name not in ("mean", "std"):
            tensor.copy_(tensor + 0.1 * torch.rand(tensor.shape, generator=noise))
    return model.eval()


def save(model: Normalized, folder: Path) -> str:
    """Save a model into a folder and return its sha256."""
    assert model.spec is not None
    return save_model(Storage.at(folder), model.state_dict(), spec=model.spec, about={"seed": 3})


def edit(folder: Path, **changes: object) -> None:
    """Change entries of model.json, and its checksum with them."""
    about = json.loads((folder / MODEL_JSON).read_text())
    (folder / MODEL_JSON).write_text(json.dumps(sealed(about | changes)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_model_with_any_activation_comes_back_as_it_was_saved(
    activation: str, tmp_path: Path
) -> None:
    info = ACTIVATIONS[activation]
    model = trained(activation, alpha=None if info.alpha is None else info.alpha.grid[0])
    digest = save(model, tmp_path)
    loaded = load_model(str(tmp_path), expected_sha256=digest)
    assert loaded.spec == model.spec and not loaded.training
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded(x), model(x))


def test_the_sha256_and_the_notes_are_written_beside_the_weights(tmp_path: Path) -> None:
    digest = save(trained(), tmp_path)
    about = json.loads((tmp_path / MODEL_JSON).read_text())
    assert (
        digest
        == about["sha256"]
        == hashlib.sha256((tmp_path / MODEL_WEIGHTS).read_bytes()).hexdigest()
    )
    assert about["about"] == {"seed": 3} and about["format"] == 2


@pytest.mark.parametrize("damage", ["one bit", "cut", "another model's"])
def test_weights_that_are_not_those_described_are_refused(damage: str, tmp_path: Path) -> None:
    digest = save(trained(), tmp_path)
    path = tmp_path / MODEL_WEIGHTS
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-1] ^= 1
    elif damage == "cut":
        data = data[:-4]
    else:
        other = tmp_path / "other"
        save(trained("silu"), other)
        data = bytearray((other / MODEL_WEIGHTS).read_bytes()[:-1] + b"\x01")
    path.write_bytes(data)
    for expected in (digest, None):
        with pytest.raises(
            ValueError, match=r"does not match its sha256 in model\.json; .* was replaced: restore"
        ):
            load_model(str(tmp_path), expected_sha256=expected)


def test_a_sound_checkpoint_that_is_not_the_expected_one_is_refused(tmp_path: Path) -> None:
    save(trained(), tmp_path)
    with pytest.raises(ValueError, match="was replaced"):
        load_model(str(tmp_path), expected_sha256="0" * 64)


def test_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    save(trained(), tmp_path)
    edit(tmp_path, format=3)
    with pytest.raises(ValueError, match="must have format 2 or less, got 3"):
        load_model(str(tmp_path))


def test_an_alpha_that_was_changed_by_hand_is_refused_and_not_another_network(
    tmp_path: Path,
) -> None:
    save(trained("parametric_softplus", alpha=5.0), tmp_path)
    path = tmp_path / MODEL_JSON
    path.write_text(path.read_text().replace('"alpha": 5.0', '"alpha": 50.0'))
    with pytest.raises(
        ValueError,
        match=(
            r"model\.json does not match its checksum: it was changed or is damaged; restore the "
            r"folder"
        ),
    ):
        load_model(str(tmp_path))
    about = json.loads(path.read_text())
    del about[SEAL]
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"model\.json has no checksum"):
        load_model(str(tmp_path))


def test_a_checkpoint_of_the_format_without_checksum_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained("silu")
    save(model, tmp_path)
    about = json.loads((tmp_path / MODEL_JSON).read_text()) | {"format": 1}
    del about[SEAL]
    (tmp_path / MODEL_JSON).write_text(json.dumps(about))
    assert same_weights(load_model(str(tmp_path)), model)
    assert "has no checksum" in caplog.text and str(tmp_path) in caplog.text


JSON_VALUES = (None, True, 0, -1, 1.5, 10**30, math.inf, math.nan, "", "x", [], [[]], {}, {"x": 1})


def same_weights(ours: Normalized, theirs: Normalized) -> bool:
    """Say whether two models have the same weights, bit by bit."""
    mine, others = ours.state_dict(), theirs.state_dict()
    return mine.keys() == others.keys() and all(
        torch.equal(mine[name], others[name]) for name in mine
    )


def mutated(data: bytes, draw: st.DataObject) -> bytes:
    """Return bytes with one thing wrong: a bit, a stretch removed or doubled, the end cut, or the
    length that a header begins with.
    """
    at = draw.draw(st.integers(0, len(data) - 1), label="at")
    kind = draw.draw(
        st.sampled_from(["bit", "cut", "hole", "doubled", "length", "zeros"]), label="kind"
    )
    if kind == "bit":
        return (
            data[:at]
            + bytes([data[at] ^ (1 << draw.draw(st.integers(0, 7), label="bit"))])
            + data[at + 1 :]
        )
    if kind == "length":
        return (
            draw.draw(
                st.sampled_from([0, 1, len(data), 2**31, 2**63, 2**64 - 1]), label="length"
            ).to_bytes(8, "little")
            + data[8:]
        )
    end = min(len(data), at + draw.draw(st.integers(1, 64), label="span"))
    pieces = {
        "cut": b"",
        "hole": data[end:],
        "doubled": data[at:end] + data[at:],
        "zeros": bytes(end - at) + data[end:],
    }
    return data[:at] + pieces[kind]


def with_one_value_changed(value: Any, draw: st.DataObject) -> Any:
    """Return a JSON value of which one part, at any depth, is another value or gone."""
    if isinstance(value, (dict, list)) and value and draw.draw(st.booleans(), label="deeper"):
        key = draw.draw(
            st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))),
            label="key",
        )
        changed = value.copy()
        if draw.draw(st.booleans(), label="gone"):
            del changed[key]
        else:
            changed[key] = with_one_value_changed(value[key], draw)
        return changed
    return draw.draw(st.sampled_from(JSON_VALUES), label="value")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Normalized]:
    """Return the folder of a checkpoint that is in order, and its model."""
    folder, model = tmp_path_factory.mktemp("whole"), trained("parametric_softplus", alpha=5.0)
    save(model, folder)
    return folder, model


def loads_or_says_why(folder: Path, model: Normalized) -> None:
    """Load a checkpoint and require one line, or the model that was saved."""
    try:
        loaded = load_model(str(folder))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        assert same_weights(loaded, model) and loaded.spec == model.spec
        return
    assert message and "\n" not in message


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([MODEL_JSON, MODEL_WEIGHTS]), draw=st.data())
def test_damaged_bytes_of_a_checkpoint_give_one_line_or_the_same_model(
    name: str, draw: st.DataObject, whole: tuple[Path, Normalized]
) -> None:
    folder, model = whole
    data = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(mutated(data, draw))
        loads_or_says_why(folder, model)
    finally:
        (folder / name).write_bytes(data)


@settings(max_examples=200, deadline=None)
@given(seal=st.booleans(), draw=st.data())
def test_a_description_of_another_shape_gives_one_line_or_a_model(
    seal: bool, draw: st.DataObject, whole: tuple[Path, Normalized]
) -> None:
    """What has a right checksum may come from another version, and the format before had none."""
    folder, model = whole
    text = (folder / MODEL_JSON).read_text()
    plain = {name: value for name, value in json.loads(text).items() if name != SEAL} | {
        "format": 2 if seal else 1
    }
    changed = with_one_value_changed(plain, draw)
    try:
        (folder / MODEL_JSON).write_text(
            json.dumps(sealed(changed) if seal and isinstance(changed, dict) else changed)
        )
        loaded = load_model(str(folder))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        assert same_weights(loaded, model)
        return
    finally:
        (folder / MODEL_JSON).write_text(text)
    assert message and "\n" not in message


@pytest.mark.parametrize("field", ["width", "num_classes"])
def test_a_description_of_a_network_that_is_not_stored_takes_no_memory(
    field: str, tmp_path: Path
) -> None:
    """The network of the width here would take 80 GB."""
    save(trained(), tmp_path)
    spec = json.loads((tmp_path / MODEL_JSON).read_text())["spec"]
    edit(tmp_path, spec=spec | {field: {"width": 4096, "num_classes": 1_000_000}[field]})
    limits = resource.getrlimit(resource.RLIMIT_AS)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + 256 * 1024**2, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"do not fit together \(.* must have the shape"):
            load_model(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_field_of_the_description_that_makes_no_sense_names_the_checkpoint(
    tmp_path: Path,
) -> None:
    save(trained(), tmp_path)
    spec = json.loads((tmp_path / MODEL_JSON).read_text())["spec"]
    edit(tmp_path, spec=spec | {"width": "wide"})
    said = (
        rf"checkpoint {tmp_path}: model\.json: width must be a whole number.*; restore the folder"
    )
    with pytest.raises(ValueError, match=said):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"activation": "none"}, r"model\.json: activation 'none' is unknown.*; restore the"),
        ([], r"model\.json: configuration must be a JSON object.*got \[\]; restore the folder"),
        ({"activation": "strangers:net"}, r"model\.json names code.*--allow-code strangers:net"),
    ],
)
def test_a_configuration_in_the_description_that_there_is_not_names_the_file(
    configuration: Any, said: str, tmp_path: Path
) -> None:
    """`evaluate` and `export` read it."""
    save(trained(), tmp_path)
    edit(tmp_path, about={"configuration": configuration})
    with pytest.raises(ValueError, match=said):
        configuration_of(Storage.at(tmp_path))


def test_a_folder_without_a_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no model\.json in .*nothing; give the folder of a checkpoint"
    ):
        load_model(str(tmp_path / "nothing"))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("spelling", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_weights_is_refused_and_never_run(
    spelling: str, tmp_path: Path
) -> None:
    save(trained(), tmp_path)
    target = tmp_path / "run"
    if spelling == "pickle":
        data = pickle.dumps(_Payload(target))
    else:
        torch.save({"x": _Payload(target)}, tmp_path / "made.pt")
        data = (tmp_path / "made.pt").read_bytes()
    (tmp_path / MODEL_WEIGHTS).write_bytes(data)
    edit(tmp_path, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises((ValueError, safetensors.SafetensorError)):
        load_model(str(tmp_path))
    assert not target.exists()


def test_no_module_unpickles_or_evaluates_text() -> None:
    """Names that run what they read; torch.load and yaml.load are among them.

    CIFAR's official batches are pickles: one module reads them, with stand-ins for the three names
    that it allows (test_sources.py). Models that others made: exports are probed with weights_only
    (and its error class), weights are read with it, pickled models only where the user says so.
    """
    exempt = {
        "data/sources/cifar_pickle.py": {"pickle"},
        "evaluation/external/loading.py": {"torch.load"},
        "evaluation/external/weights_file.py": {"torch.load"},
        "models/pt2/load.py": {"pickle", "torch.load"},
    }
    forbidden = {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
        "eval",
        "exec",
        "torch.load",
        "yaml.load",
    }
    root = Path(sat_ray.__file__).parent
    for path in root.rglob("*.py"):
        tree, used = ast.parse(path.read_text()), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Call):
                used.add(ast.unparse(node.func))
        assert not used & forbidden - exempt.get(str(path.relative_to(root)), set()), (
            path,
            used & forbidden,
        )


def state() -> TrainingState:
    """Return a state with every kind of value: scalars, whole numbers, channels-last tensors,
    shared tensors, awkward floats.
    """
    weights = {
        "body.conv1.weight": torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "body.relu.beta": torch.tensor(20.0),
        "body.bn1.num_batches_tracked": torch.tensor(7),
        "tiny": torch.tensor([1e-45, float("inf"), -0.0]),
    }
    return TrainingState(
        epoch=3,
        weights=weights,
        optimizer={"momentum_buffer/body.conv1.weight": torch.rand(4, 3, 2, 2)},
        average={"body.conv1.weight": torch.rand(4, 3, 2, 2)},
        best=weights,
        good={
            "weights/body.relu.beta": torch.tensor(19.0),
            "optimizer/exp_avg/body.relu.beta": torch.tensor(0.1),
        },
        best_epoch=2,
        best_score=(0.1 + 0.2, 1 / 3),
        guard=Memory(best=7, robust=6, images=9, good_epoch=1, good_step=4, collapses=2),
        events=[{"epoch": 1, "step": 4, "robust_accuracy": 1 / 3}],
        step=5,
        sums=(0.1, 7.0, 64.0),
        history=[{"epoch": 0.0, "train/loss": 1 / 3}, {"epoch": 1.0, "train/loss": 5e-324}],
        seconds=12.3,
    )


@pytest.mark.parametrize("ours", [TrainingState(), state()], ids=["empty", "full"])
def test_a_training_state_survives_its_file_tensor_by_tensor_and_bit_by_bit(
    ours: TrainingState,
) -> None:
    theirs = unpack_state(pack_state(ours))
    for field in dataclasses.fields(TrainingState):
        left, right = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in TENSORS:
            assert left.keys() == right.keys()
            assert all(
                torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype
                for name in left
            )
            assert all(torch.equal(left[name].signbit(), right[name].signbit()) for name in left)
        else:
            assert left == right and type(left) is type(right), field.name


def test_weights_and_best_of_a_loaded_state_do_not_share_memory() -> None:
    loaded = unpack_state(pack_state(state()))
    loaded.weights["body.relu.beta"].zero_()
    assert loaded.best["body.relu.beta"] == 20


@pytest.mark.parametrize(
    "damage", ["a bit of a tensor", "a digit of the header", "cut", "empty", "a list", "not ours"]
)
def test_a_damaged_training_state_is_refused(damage: str) -> None:
    data = bytearray(pack_state(state()))
    if damage == "a bit of a tensor":
        data[-1] ^= 1
    elif damage == "a digit of the header":
        data = data.replace(b'epoch_seconds\\\\\\": 0.0', b'epoch_seconds\\\\\\": 1.0')
        assert bytes(data) != pack_state(state())
    elif damage == "cut":
        data = data[:-4]
    elif damage == "empty":
        data = bytearray()
    elif damage == "a list":
        data = bytearray(b"\x02\0\0\0\0\0\0\0[]")
    else:
        data = bytearray(safetensors.torch.save({"x": torch.zeros(2)}))
    with pytest.raises(ValueError, match="training state does not match its sha256"):
        unpack_state(bytes(data))


PACKED = pack_state(state())


def test_equal_training_states_are_equal_bytes() -> None:
    one = state()
    assert len({pack_state(one) for _ in range(50)}) == 1


@settings(max_examples=300, deadline=None)
@given(draw=st.data())
def test_damaged_bytes_of_a_training_state_give_one_line_or_the_same_state(
    draw: st.DataObject,
) -> None:
    data = mutated(PACKED, draw)
    try:
        loaded = unpack_state(data)
    except ValueError as error:
        message = str(error)
    else:
        assert pack_state(loaded) == PACKED
        return
    assert (
        message
        == "training state does not match its sha256; it is damaged, or not one of this version"
    )
