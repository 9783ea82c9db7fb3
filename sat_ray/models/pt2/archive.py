"""The parts of a .pt2 archive that torch may read: checked, and packed anew without the rest.

torch.export.load trusts a file. It unpickles the example inputs, evaluates the text of symbolic
shapes with sympy, imports the modules that tree specs name, calls whatever function a node names,
and writes node names into Python source that it executes. So every text of an archive must belong
to a small grammar before torch sees it, and torch reads a new archive that holds only what was
checked: what another reader of zip files would see in the old one does not matter.

    weights, constants     raw tensors that a table names, with no more elements than bytes
    models/model.json      names, operators, symbolic shapes, tree specs and plain strings as below;
                           metadata and guards are left out
    example inputs, extra  left out, and never unpickled
"""

import ast
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from sat_ray.utils.import_string import first_line

ALLOWED = "what torch.export.save writes for a model of plain tensors"
LONGEST_JSON = 64 * 1024**2  # of a description; the one of a DenseNet-121 has 1.3 MB
# Elements that a table may name, per byte of all its tensors: weights may be shared.
SHARED_WEIGHTS = 4

_MODEL = "models/model.json"
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_EXAMPLES = "data/sample_inputs/model.pt"
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
)
_RAW = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,7}")
_LEFT_OUT = re.compile(rf"extra/.*|{re.escape(_EXAMPLES)}")
_HARMLESS = re.compile("|".join(one.pattern for one in (_RAW, _PLAIN, _LEFT_OUT)))

_IDENTIFIER = re.compile(r"(?!__\w*__$)[A-Za-z_]\w{0,255}", re.ASCII)
# Of a module or a tensor, layer1.0.conv1.weight, or nothing.
_PATH = re.compile(r"(?!(?:.*\.)?__\w*__(?:\.|$))\w{1,255}(\.\w{1,255}){0,63}|", re.ASCII)
# An argument of an operator: "constant", "bij,bjk->bik".
_STRING = re.compile(r"[A-Za-z0-9_ .,:>+*()\[\]-]{0,200}")
_VERSION = re.compile(r"[\w.+<=-]{0,64}", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,4}")
# Tensor operators, without those that open a file.
_ATEN = r"torch\.ops\.(?:aten|prims)\.(?!from_file|save|load|_?print|warn)\w{1,100}\.(?!_)\w{1,100}"
_OPERATOR = re.compile(
    _ATEN + r"|torch\.ops\.higher_order\.(?:wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(?:floor|ceil|trunc|sqrt)|torch\.(?:sym_(?:float|int|max|min|not|ite|sum)|_sym_sqrt)",
    re.ASCII,
)
_FUNCTIONS = frozenset(
    (
        "Symbol",
        "Integer",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "floor",
        "ceiling",
        "And",
        "Or",
        "Not",
    )
)
_FUNCTIONS |= {
    "FloorDiv",
    "CeilDiv",
    "CleanDiv",
    "Mod",
    "PythonMod",
    "ModularIndexing",
    "Equality",
    "Unequality",
}
_FUNCTIONS |= {"StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"}
_ASSUMPTIONS = frozenset(
    (
        "integer",
        "positive",
        "negative",
        "nonnegative",
        "nonpositive",
        "zero",
        "nonzero",
        "real",
        "finite",
    )
)
_OBJECTS = ("as_custom_obj", "custom_obj", "custom_obj_values", "as_operator")
LARGEST_INTEGER = 2**63
LONGEST_EXPRESSION, MOST_CALLS, LARGEST_POWER = 2000, 64, 8


def checked_archive(data: bytes) -> bytes:
    """Return a .pt2 archive with the checked parts of another; ValueError is a sentence without its
    subject."""
    try:
        return _packed(_checked_parts(data))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        kind = "is no .pt2 archive" if not zipfile.is_zipfile(io.BytesIO(data)) else "is damaged"
        raise ValueError(f"{kind} ({first_line(error)}); copy or export it again") from None


def _checked_parts(data: bytes) -> dict[str, bytes]:
    """Read every part that torch may see. Raises ValueError, and what zipfile raises on damage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [part for part in archive.infolist() if not part.is_dir()]
        names = [part.filename.partition("/")[2] for part in parts]
        roots = {part.filename.partition("/")[0] for part in parts}
        if len(set(names)) != len(names) or len(roots) > 1:
            raise _refused("holds a part twice")
        for part, name in zip(parts, names, strict=True):
            if name not in (_MODEL, *_TABLES) and not _HARMLESS.fullmatch(name):
                raise _refused(
                    f"holds the part {part.filename!r:.100}, which may be pickled or compiled code"
                )
            if part.compress_type != zipfile.ZIP_STORED:
                raise _refused(
                    f"holds the compressed part {part.filename!r:.100}, whose size the file does "
                    "not bound"
                )
            if name in (_MODEL, *_TABLES) and part.file_size > LONGEST_JSON:
                raise _refused(
                    f"has a description of {part.file_size:,} bytes; accepted: {LONGEST_JSON:,}"
                )
        if sum(part.file_size for part in parts) > len(data):
            raise _refused("declares parts that are larger than the file")
        if missing := [name for name in (_MODEL, *_TABLES) if name not in names]:
            raise _refused(f"holds no {missing[0]}")
        wanted = [
            part for part, name in zip(parts, names, strict=True) if not _LEFT_OUT.fullmatch(name)
        ]
        found = {part.filename.partition("/")[2]: archive.read(part) for part in wanted}
    for table in _TABLES:
        found[table] = _checked_json(
            found[table],
            "a damaged table",
            partial(_check_table, name=table, parts=found),
        )
    found[_MODEL] = _checked_json(found[_MODEL], "a damaged description", lambda value: None)
    return found | {_EXAMPLES: b""}


def _packed(parts: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    return sink.getvalue()


def _refused(reason: str) -> ValueError:
    return ValueError(
        f"{reason}; loading it could run code or take all memory. Accepted: {ALLOWED}"
    )


def _checked_json(data: bytes, damage: str, check: Callable[[Any], None]) -> bytes:
    """Return a JSON text with the checked values of another alone."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(f"holds {damage} ({first_line(error)[:100]})") from None
    try:
        check(value)
        return json.dumps(_checked(value, "")).encode()
    except (TypeError, KeyError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise _refused(f"holds {damage} ({first_line(error)[:100]})") from None


def _check_table(table: Any, name: str, parts: dict[str, bytes]) -> None:
    """Raise ValueError where a table names a pickled tensor, or more elements than its files could
    hold."""
    folder = name.rpartition("/")[0]
    elements = 0
    for tensor, entry in table["config"].items():
        path = f"{folder}/{entry['path_name']}"
        if entry["use_pickle"] is not False or not _RAW.fullmatch(path) or path not in parts:
            raise _refused(f"holds a pickled tensor, or none, as {tensor!r:.100}")
        count = 1
        for size in entry["tensor_meta"]["sizes"]:
            count *= _whole(size["as_int"])
        if count > len(parts[path]):
            raise _refused(
                f"declares {count:,} elements for {tensor!r:.100}, which has {len(parts[path]):,} "
                "bytes"
            )
        elements += count
    held = sum(len(content) for part, content in parts.items() if part.startswith(f"{folder}/"))
    held -= len(parts[name])
    if elements > SHARED_WEIGHTS * held:
        raise _refused(f"declares {elements:,} elements, but holds {held:,} bytes of them")


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST_INTEGER:
        raise _refused(f"has the size {value!r:.50}")
    return value


def _checked(value: Any, field: str) -> Any:
    """Return a JSON value without free text and with every tensor on the CPU. field: the key that
    it lies under."""
    if field in ("metadata", "treespec_namedtuple_fields"):
        return {}
    if field == "guards_code":
        return []
    if field in _OBJECTS and value:
        raise _refused(f"holds {field}, an object that only pickled code describes")
    if field in ("device", "as_device"):
        return {"type": "cpu", "index": None}
    if isinstance(value, dict):
        kinds = {"opset_version": _PATH, "range_constraints": _SYMBOL, "config": _PATH}
        keys = kinds.get(field, _IDENTIFIER)
        return {_text(key, keys, field): _checked(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, field) for item in value]
    if isinstance(value, str):
        return _checked_text(value, field)
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise _refused(f"holds an integer beyond 64 bits as {field}")
    return value


def _checked_text(text: str, field: str) -> str:
    if field == "expr_str":
        check_expression(text)
        return text
    if field in ("in_spec", "out_spec"):
        _check_tree(json.loads(text))
        return text
    if field in ("as_float", "as_floats") and text in ("Infinity", "-Infinity", "NaN"):
        return text
    grammars = {
        "target": _OPERATOR,
        "name": re.compile(rf"{_IDENTIFIER.pattern}|", re.ASCII),
        "as_name": _IDENTIFIER,
        "forward_arg_names": _IDENTIFIER,
        "as_string": _STRING,
        "as_strings": _STRING,
        "torch_version": _VERSION,
    }
    return _text(text, grammars.get(field, _PATH), field)


def _text(text: str, grammar: re.Pattern[str], field: str) -> str:
    if not grammar.fullmatch(text):
        raise _refused(f"holds the text {text!r:.100} as {field or 'a name'}")
    return text


def _check_tree(spec: Any) -> None:
    """Raise ValueError unless a tree spec is made of tuples, lists and dictionaries with plain
    keys."""
    version, root = spec
    if version != 1:
        raise _refused(f"holds a tree spec of version {version!r:.20}")
    waiting = [root]
    while waiting:
        node = waiting.pop()
        kind, context = node["type"], node["context"]
        keys = json.loads(context) if context is not None else None
        plain = keys is None or (isinstance(keys, list) and all(_is_key(key) for key in keys))
        if kind not in (None, "builtins.tuple", "builtins.list", "builtins.dict") or not plain:
            raise _refused(f"holds a tree spec of {kind!r:.50} and {context!r:.50}")
        waiting += node["children_spec"]


def _is_key(key: object) -> bool:
    return isinstance(key, str) and _IDENTIFIER.fullmatch(key) is not None


def check_expression(text: str) -> None:
    """Raise ValueError unless a symbolic shape is a short call tree of `_FUNCTIONS` over symbols
    and integers.

    sympy evaluates the text as Python, and computes it: so numbers and powers are small, and a
    power holds no other power."""
    if len(text) > LONGEST_EXPRESSION:
        raise _refused(f"holds a symbolic shape of {len(text):,} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _refused(f"holds the symbolic shape {text!r:.100}") from None
    calls = sum(isinstance(node, ast.Call) for node in ast.walk(tree))
    if calls > MOST_CALLS or not _is_shape(tree):
        raise _refused(f"holds the symbolic shape {text!r:.100}")


def _is_shape(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in ("true", "false")
    name = _function(node)
    if not isinstance(node, ast.Call) or name not in _FUNCTIONS:
        return False
    if name == "Symbol":
        return len(node.args) == 1 and _is_symbol(node.args[0]) and _are_assumptions(node.keywords)
    if node.keywords:
        return False
    if name in ("Integer", "Rational"):
        return 1 <= len(node.args) <= 2 and all(_is_integer(one) for one in node.args)
    if name == "Pow":
        return len(node.args) == 2 and _is_base(node.args[0]) and _is_small_power(node.args[1])
    return bool(node.args) and all(_is_shape(one) for one in node.args)


def _function(node: ast.AST) -> str:
    """Return the name of the function that a node calls; "" where it is no such call."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _is_symbol(node: ast.AST) -> bool:
    return _SYMBOL.fullmatch(str(_constant(node))) is not None


def _is_base(node: ast.AST) -> bool:
    return _is_shape(node) and all(_function(one) != "Pow" for one in ast.walk(node))


def _constant(node: ast.AST) -> object:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand)
        return -value if type(value) is int else None
    return node.value if isinstance(node, ast.Constant) else None


def _is_integer(node: ast.AST) -> bool:
    value = _constant(node)
    return type(value) is int and abs(value) < LARGEST_INTEGER


def _is_small_power(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or _function(node) != "Integer" or not _is_shape(node):
        return False
    value = _constant(node.args[0])
    return type(value) is int and abs(value) <= LARGEST_POWER


def _are_assumptions(keywords: list[ast.keyword]) -> bool:
    return all(one.arg in _ASSUMPTIONS and type(_constant(one.value)) is bool for one in keywords)
