"""The values that a model's description in a .pt2 archive may have.

Every text must belong to a small grammar: names, operators, symbolic shapes, tree specs and plain
strings. Metadata and guards are left out, and every tensor is put on the CPU.
"""

import ast
import json
import re
from typing import Any

ALLOWED = "what torch.export.save writes for a model of plain tensors"

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
    [
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
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
        "Mod",
        "PythonMod",
        "ModularIndexing",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
    ]
)
_ASSUMPTIONS = frozenset(
    [
        "integer",
        "positive",
        "negative",
        "nonnegative",
        "nonpositive",
        "zero",
        "nonzero",
        "real",
        "finite",
    ]
)
_OBJECTS = ("as_custom_obj", "custom_obj", "custom_obj_values", "as_operator")
LARGEST_INTEGER = 2**63
LONGEST_EXPRESSION = 2000  # characters of a symbolic shape
MOST_CALLS = 64  # in one symbolic shape
LARGEST_POWER = 8


def refused(reason: str) -> ValueError:
    """Return the error that refuses an archive. reason: a sentence without its subject."""
    return ValueError(
        f"{reason}; loading it could run code or take all memory. Accepted: {ALLOWED}"
    )


def checked_value(value: Any, field: str) -> Any:
    """Return a JSON value without free text and with every tensor on the CPU. field: the key that
    it lies under."""
    if field in ("metadata", "treespec_namedtuple_fields"):
        return {}
    if field == "guards_code":
        return []
    if field in _OBJECTS and value:
        raise refused(f"holds {field}, an object that only pickled code describes")
    if field in ("device", "as_device"):
        return {"type": "cpu", "index": None}
    if isinstance(value, dict):
        kinds = {"opset_version": _PATH, "range_constraints": _SYMBOL, "config": _PATH}
        keys = kinds.get(field, _IDENTIFIER)
        return {_text(key, keys, field): checked_value(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [checked_value(item, field) for item in value]
    if isinstance(value, str):
        return _checked_text(value, field)
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise refused(f"holds an integer beyond 64 bits as {field}")
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
        raise refused(f"holds the text {text!r:.100} as {field or 'a name'}")
    return text


def _check_tree(spec: Any) -> None:
    """Raise ValueError unless a tree spec is made of tuples, lists and dictionaries with plain
    keys."""
    version, root = spec
    if version != 1:
        raise refused(f"holds a tree spec of version {version!r:.20}")
    waiting = [root]
    while waiting:
        node = waiting.pop()
        kind, context = node["type"], node["context"]
        keys = json.loads(context) if context is not None else None
        plain = keys is None or (isinstance(keys, list) and all(_is_key(key) for key in keys))
        if kind not in (None, "builtins.tuple", "builtins.list", "builtins.dict") or not plain:
            raise refused(f"holds a tree spec of {kind!r:.50} and {context!r:.50}")
        waiting += node["children_spec"]


def _is_key(key: object) -> bool:
    return isinstance(key, str) and _IDENTIFIER.fullmatch(key) is not None


def check_expression(text: str) -> None:
    """Raise ValueError unless a symbolic shape is a short call tree of `_FUNCTIONS` over symbols
    and integers.

    sympy evaluates the text as Python, and computes it: so numbers and powers are small, and a
    power holds no other power."""
    if len(text) > LONGEST_EXPRESSION:
        raise refused(f"holds a symbolic shape of {len(text):,} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise refused(f"holds the symbolic shape {text!r:.100}") from None
    calls = sum(isinstance(node, ast.Call) for node in ast.walk(tree))
    if calls > MOST_CALLS or not _is_shape(tree):
        raise refused(f"holds the symbolic shape {text!r:.100}")


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
