"""What a ``.pt2`` archive would have torch run while it is read, and a refusal of whatever is no graph.

``torch.export.load`` trusts its input (https://docs.pytorch.org/docs/stable/export/api_reference.html: "uses
pickle under the hood"): it unpickles constants, evaluates the text of symbolic sizes with sympy, executes
guards as Python, and resolves operators by attribute. A graph needs none of that freedom, so an archive is
held to what ``torch.export.save`` writes for tensors and ATen operators. This is no proof against a
determined author; the separate process with its limits stands behind it.

No torch here: the archive is read as the zip file of JSON that it is
(https://docs.pytorch.org/docs/stable/export/pt2_archive.html).
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from onnx_serve.errors import quote

__all__ = ["check_export_archive"]

_MAX_JSON_BYTES = 256 << 20
# What torch/_export/serde/serialize.py lets through although it is no operator of a graph: load_library and
# friends are attributes of torch.ops itself, so a namespace and a name must follow.
_OPERATOR = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|math\.\w+|torch\.(_sym|sym)_\w+"
    r"|_operator\.(?!attrgetter|itemgetter|methodcaller|call)\w+"
)
_TOKEN = re.compile(
    r"'(?P<symbol>[a-z]+\d+)'|(?P<text>['\"])|(?P<name>[A-Za-z_]\w*)|(?P<dot>\.(?!\d))|(?P<other>[\[\]{}:;@`\\])"
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
_FUNCTIONS = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "CeilDiv",
        "CeilToInt",
        "CleanDiv",
        "Eq",
        "Equality",
        "False",
        "Float",
        "FloatPow",
        "FloatTrueDiv",
        "FloorDiv",
        "FloorToInt",
        "Ge",
        "GreaterThan",
        "Gt",
        "Identity",
        "IntTrueDiv",
        "Integer",
        "IsNonOverlappingAndDenseIndicator",
        "LShift",
        "Le",
        "LessThan",
        "Lt",
        "Max",
        "Min",
        "Mod",
        "ModularIndexing",
        "Mul",
        "Ne",
        "Not",
        "Or",
        "Piecewise",
        "Pow",
        "PowByNatural",
        "PythonMod",
        "RShift",
        "Rational",
        "RoundDecimal",
        "RoundToInt",
        "StrictGreaterThan",
        "StrictLessThan",
        "Symbol",
        "ToFloat",
        "True",
        "TruncToFloat",
        "TruncToInt",
        "Unequality",
        "Where",
        "and",
        "false",
        "finite",
        "int_oo",
        "integer",
        "negative",
        "nonnegative",
        "nonzero",
        "not",
        "oo",
        "or",
        "positive",
        "precision",
        "real",
        "true",
        "zero",
    ]
)
# In guards, an input is L['x'], perhaps with indices into tuples and dictionaries, and is asked for its sizes.
_GUARDED = re.compile(
    r"L(\['\w+'\])(\[('\w+'|\d+)\])*(\.(size|stride)\(\)\[\d+\]|\.(dim|numel|storage_offset)\(\))?"
)


def check_export_archive(path: Path) -> None:
    """Reads an archive of torch.export and lets it pass if it holds a graph and tensors, and nothing else.

    Raises:
        ConversionError: It is damaged, or holds pickles, compiled code, or text that is no size or operator.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive)
            for name in archive.namelist():
                if name.endswith(".json"):
                    _check_document(name.rpartition("/")[2], json.loads(_read(archive, name)))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, RecursionError) as ex:
        raise ConversionError(f"{quote(path.name)} is a damaged torch.export archive: {ex}") from ex


def _check_members(archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    # Which of two members of one name is read depends on the reader.
    if len(names) != len(set(names)):
        raise ConversionError("the torch.export archive names a file twice")
    if any("/aotinductor/" in name for name in names):
        raise ConversionError(
            "the .pt2 archive holds code compiled by AOTInductor: expected one written by torch.export.save"
        )
    if not any(name.endswith((".json",)) for name in names):
        raise ConversionError("the torch.export archive holds no graph")


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > _MAX_JSON_BYTES:
        raise ConversionError(
            f"the torch.export archive's {quote(name)} has {info.file_size} bytes, more than {_MAX_JSON_BYTES}"
        )
    return archive.read(info)


def _check_document(name: str, document: Any) -> None:
    for table in _tables(document):
        if table.get("use_pickle") is True:
            raise _untrusted(name, "an object as a pickle")
        expression = table.get("expr_str")
        if expression is not None and not _is_size(expression):
            raise _untrusted(name, f"the size {quote(expression)}")
        if {"target", "inputs", "outputs"} <= table.keys() and not _is_operator(table["target"]):
            raise _untrusted(name, f"a call of {quote(table['target'])}")
        for guard in table.get("guards_code") or ():
            if not isinstance(guard, str) or not _is_size(_GUARDED.sub("s0", guard)):
                raise _untrusted(name, f"the condition {quote(guard)}")


def _untrusted(name: str, what: str) -> ConversionError:
    return ConversionError(
        f"the torch.export archive's {name} holds {what}, which torch would run while reading it: "
        "add --trust-pickle if you trust its author"
    )


def _tables(document: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a document."""
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _is_operator(target: Any) -> bool:
    return isinstance(target, str) and _OPERATOR.fullmatch(target) is not None


def _is_size(expression: Any) -> bool:
    """Whether a text is arithmetic on symbols: nothing that looks up an attribute or calls by another name."""
    if not isinstance(expression, str) or "__" in expression:
        return False
    for token in _TOKEN.finditer(expression):
        name = token["name"]
        if token["text"] or token["dot"] or token["other"]:
            return False
        if name and name not in _FUNCTIONS and not _SYMBOL.fullmatch(name):
            return False
    return True
