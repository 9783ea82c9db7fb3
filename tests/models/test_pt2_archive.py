"""What could run Python or take all memory is refused before torch reads a .pt2 file."""

import contextlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sat_ray.models.pt2.archive import checked_archive
from sat_ray.models.pt2.description import check_expression
from sat_ray.models.pt2.load import load_exported
from sat_ray.models.pt2.trial_load import try_in_child

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
MODEL, WEIGHTS, EXAMPLES = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/sample_inputs/model.pt",
)
CODE = "__import__('pathlib').Path('was run').touch()"


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(torch.relu(self.convolution(x)).mean((2, 3)))
        return logits


def _exported(model: nn.Module, dynamic: Any = None) -> bytes:
    sink = io.BytesIO()
    shapes = (dynamic or {0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(model.eval(), (torch.rand(2, *SHAPE),), dynamic_shapes=shapes), sink
    )
    return sink.getvalue()


@pytest.fixture(scope="module")
def good() -> bytes:
    """Return a .pt2 file as torch wrote it."""
    return _exported(_Small())


def _parts(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def _packed(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"evil/{name}", content)
    return sink.getvalue()


def _changed(data: bytes, change: Callable[[Any], None], part: str = MODEL) -> bytes:
    parts = _parts(data)
    value = json.loads(parts[part])
    change(value)
    return _packed(parts | {part: json.dumps(value).encode()})


def _node(value: Any, **fields: Any) -> None:
    value["graph_module"]["graph"]["nodes"][0].update(fields)


def _shape(value: Any, text: str) -> None:
    value["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


def _tree(value: Any, node: Any) -> None:
    value["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, node])


FACTORY = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
ENUM = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "x"})
HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "code as a shape": (lambda v: _shape(v, CODE), "symbolic shape"),
    "a name of Python as a shape": (lambda v: _shape(v, "Add(Integer(1), exit)"), "symbolic shape"),
    "an attribute in a shape": (lambda v: _shape(v, "Integer(1).__class__"), "symbolic shape"),
    "a tower of powers": (
        lambda v: _shape(v, "Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
        "symbolic shape",
    ),
    "nested powers": (
        lambda v: _shape(v, "Pow(Pow(Integer(9), Integer(8)), Integer(8))"),
        "symbolic shape",
    ),
    "a number beyond 64 bits": (lambda v: _shape(v, f"Integer({2**64})"), "symbolic shape"),
    "text as a symbol": (lambda v: _shape(v, "Symbol('exit()')"), "symbolic shape"),
    "a long shape": (lambda v: _shape(v, "(" * 5000), "symbolic shape of 5,000 characters"),
    "a function of a module": (lambda v: _node(v, target="torch.os.system"), "torch.os.system"),
    "a getter of attributes": (
        lambda v: _node(v, target="_operator.attrgetter"),
        "_operator.attrgetter",
    ),
    "an operator that maps files": (
        lambda v: _node(v, target="torch.ops.aten.from_file.default"),
        "from_file",
    ),
    "an operator that reads files": (
        lambda v: _node(v, target="torch.ops.image.read_file.default"),
        "read_file",
    ),
    "code as a node's name": (lambda v: _node(v, name=f"x = {CODE}"), "as name"),
    "a tree spec that imports": (
        lambda v: _tree(
            v,
            {
                "type": "collections.defaultdict",
                "context": json.dumps(FACTORY),
                "children_spec": [],
            },
        ),
        "tree spec",
    ),
    "an enum that imports": (
        lambda v: _tree(v, {"type": "builtins.dict", "context": ENUM, "children_spec": []}),
        "tree spec",
    ),
    "a symbol that counts for ever": (
        lambda v: v["range_constraints"].update(u99999999999={"min_val": 0, "max_val": 1}),
        "u99999999999",
    ),
    "an object of a class": (
        lambda v: v["graph_module"]["graph"]["custom_obj_values"].update(
            o={"name": "o", "class_fqn": "x"}
        ),
        "custom_obj_values",
    ),
    "a description of another kind": (
        lambda v: v.clear() or v.update(graph_module=[[]]),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_description_that_could_run_python_is_refused(
    case: str, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[case]
    with pytest.raises(ValueError, match=message):
        load_exported(_changed(good, change), device=CPU)
    assert not list(tmp_path.iterdir())
    assert "antigravity" not in sys.modules


def test_torch_alone_would_have_run_the_code_of_a_shape(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = _changed(good, lambda v: _shape(v, f"({CODE}, Symbol('s7', integer=True))[1]"))
    with contextlib.suppress(Exception):
        torch.export.load(io.BytesIO(evil))
    assert (tmp_path / "was run").exists(), "torch no longer evaluates shapes: the grammar can go"


def _texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every text of a JSON value, and of every key with None at the end."""
    if isinstance(value, str):
        yield path
    for key, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        if isinstance(value, dict):
            yield (*path, key, None)
        yield from _texts(item, (*path, key))


def _with_code(value: Any, path: tuple[Any, ...]) -> None:
    for key in path[:-2] if path[-1] is None else path[:-1]:
        value = value[key]
    if path[-1] is None:
        value[CODE] = value.pop(path[-2])
    else:
        value[path[-1]] = CODE


@pytest.mark.parametrize("part", [MODEL, WEIGHTS])
def test_code_in_the_place_of_any_text_is_refused_or_left_out(part: str, good: bytes) -> None:
    value = json.loads(_parts(good)[part])
    places = list(_texts(value))
    assert len(places) > 50
    refused = 0
    for path in places:
        try:
            kept = checked_archive(
                _changed(good, lambda value, path=path: _with_code(value, path), part)
            )
        except ValueError:
            refused += 1
        else:
            assert b"__import__" not in kept, path
    assert refused > len(places) / 2


def test_example_inputs_and_extra_files_are_never_unpickled_and_guards_are_left_out(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Shell:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "was run"), "w")

    sink = io.BytesIO()
    torch.save(_Shell(), sink)
    guarded = _changed(good, lambda value: value.update(guards_code=[CODE]))
    evil = _packed(_parts(guarded) | {EXAMPLES: sink.getvalue(), "extra/x": b"\x80"})
    x = torch.rand(3, *SHAPE)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(
        load_exported(evil, device=CPU)(x), torch.export.load(io.BytesIO(good)).module()(x)
    )
    assert not list(tmp_path.iterdir())


def _resized(size: int) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        value["config"]["linear.weight"]["tensor_meta"]["sizes"][0]["as_int"] = size

    return change


def test_sizes_are_bounded_by_the_file(good: bytes) -> None:
    parts = _parts(good)
    compressed = _packed(parts | {"data/weights/weight_0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    empty = _changed(_packed(parts | {"data/weights/weight_2": b""}), _resized(10**9), WEIGHTS)
    entries = json.loads(parts[WEIGHTS])["config"]
    shared = {f"{name}_{i}": entry for i in range(30) for name, entry in entries.items()}
    overlong = bytearray(good)
    directory = overlong.rindex(b"PK\x01\x02")
    overlong[directory + 24 : directory + 28] = (2**31).to_bytes(
        4, "little"
    )  # size of the last part
    for data, message in (
        (compressed, "compressed part"),
        (_changed(good, _resized(10**9), WEIGHTS), "declares 4,000,000,000 elements"),
        (_changed(good, _resized(-1), WEIGHTS), "has the size -1"),
        (empty, "declares 4,000,000,000 elements"),
        (
            _changed(good, lambda value: value.update(config=shared), WEIGHTS),
            "declares .* elements, but holds",
        ),
        (bytes(overlong), "larger than the file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_exported(data, device=CPU)


def test_parts_that_are_pickled_compiled_unknown_or_twice_there_are_refused(good: bytes) -> None:
    parts = _parts(good)
    pickled = _changed(
        good, lambda value: value["config"]["linear.bias"].update(use_pickle=True), WEIGHTS
    )
    outside = _changed(
        good,
        lambda value: value["config"]["linear.bias"].update(path_name="../constants/custom_obj_0"),
        WEIGHTS,
    )
    cases = {
        "data/aotinductor/model/model.so": _packed(
            parts | {"data/aotinductor/model/model.so": b"\x7fELF"}
        ),
        "data/weights/model.pt": _packed(parts | {"data/weights/model.pt": b"\x80"}),
        "data/constants/custom_obj_0": _packed(parts | {"data/constants/custom_obj_0": b"\x80"}),
        "models/other.json": _packed(parts | {"models/other.json": parts[MODEL]}),
        "pickled tensor": pickled,
        "pickled tensor, or none": outside,
        "holds no models/model.json": _packed(
            {name: content for name, content in parts.items() if name != MODEL}
        ),
    }
    for message, data in cases.items():
        with pytest.raises(ValueError, match=f"{message}.*could run code"):
            load_exported(data, device=CPU)
    sink = io.BytesIO(good)
    with zipfile.ZipFile(sink, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(ValueError, match="holds a part twice"):
        load_exported(sink.getvalue(), device=CPU)
    for damaged in (b"PK", good[: len(good) // 2], b""):
        with pytest.raises(ValueError, match=r"is no \.pt2 archive"):
            load_exported(damaged, device=CPU)


def test_shapes_that_torch_writes_are_accepted(good: bytes) -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.linear = (
                nn.Conv2d(1, 4, 3, stride=2, padding=1),
                nn.Linear(4, 10),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.convolution(x)
            x = torch.cat([x, x], dim=0).unflatten(0, (2, -1)).sum(0)
            logits: Tensor = self.linear(torch.nn.functional.pad(x, (1, 1)).mean((2, 3)))
            return logits

    sides = {
        0: torch.export.Dim("n"),
        2: torch.export.Dim("h", min=4, max=64),
        3: torch.export.Dim("w", min=4, max=64),
    }
    data = _exported(Strided(), sides)
    texts = {text for part in (MODEL,) for text in _expressions(json.loads(_parts(data)[part]))}
    assert any("FloorDiv" in text or "floor" in text for text in texts), texts
    x = torch.rand(3, 1, 12, 20)
    assert torch.equal(
        load_exported(data, device=CPU)(x), torch.export.load(io.BytesIO(data)).module()(x)
    )
    check_expression("Mul(Integer(4), Symbol('s77', positive=True, integer=True))")
    check_expression("Add(Pow(Symbol('s1', integer=True), Integer(2)), Integer(-1))")


def _expressions(value: Any) -> Iterator[str]:
    for key, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        if key == "expr_str":
            yield item
        yield from _expressions(item)


def test_images_of_another_size_than_exported_are_refused_without_the_guards_of_the_file(
    good: bytes,
) -> None:
    with pytest.raises(RuntimeError, match="to be equal to 8"):
        load_exported(good, device=CPU)(torch.rand(2, 1, 9, 8))


class _Large(nn.Module):
    """Takes 16 GB for a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1)) + 0 * torch.ones(4 * x.shape[0], 10**9).sum()
        return logits


def test_a_model_that_takes_all_memory_ends_its_trial_and_not_the_evaluation(
    good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(named["env"])
        return run(*arguments, **named)

    monkeypatch.setattr(subprocess, "run", watched)
    try_in_child(good, SHAPE)
    assert "AWS_SECRET_ACCESS_KEY" not in seen[0] and "PATH" in seen[0]
    with pytest.raises(
        ValueError, match=r"cannot be loaded and called on 2 images within 2\.0 GiB of memory"
    ):
        try_in_child(_exported(_Large()), SHAPE, memory_bytes=2 * 1024**3)
