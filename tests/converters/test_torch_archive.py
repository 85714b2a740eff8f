"""What a .pt2 archive may hold; no torch is needed to tell."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.errors import ConversionError
from converters.torch_archive import check_export_archive

NODE = {"target": "torch.ops.aten.add.Tensor", "inputs": [], "outputs": []}
SIZE = "Mul(Integer(2), Symbol('s27', positive=True, integer=True))"
GUARDS = [
    "L['x'].size()[1] <= 10",
    "((8*L['x'][0].size()[1]) % (L['x']['a'].size()[1] // 2)) == 0",
    "L['x'].dim() != 3.5",
]


def archive(
    path: Path, document: Any, *, extra: dict[str, str] | None = None, name: str = "m/models/model.json"
) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr(name, json.dumps(document))
        for member, content in (extra or {}).items():
            target.writestr(member, content)
    return path


def test_what_torch_writes_passes(tmp_path: Path) -> None:
    document = {
        "nodes": [NODE, NODE | {"target": "_operator.floordiv"}],
        "size": {"expr_str": SIZE},
        "guards_code": GUARDS,
    }
    check_export_archive(archive(tmp_path / "a.pt2", document, extra={"m/data/weights/weight_0": "raw"}))


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "torch.hub.load", "torch.ops.load_library", "torch.ops.aten", "_operator.methodcaller",
        "_operator.attrgetter", "os.system", "builtins.eval", "#custom", "", 3, None,
        "torch.ops.aten.add.Tensor.__globals__", "torch.ops.a.b\n",
    ],
)  # fmt: skip
def test_calls_of_anything_but_operators_are_refused(tmp_path: Path, target: Any) -> None:
    with pytest.raises(ConversionError, match=r"holds a call of .*--trust-pickle"):
        check_export_archive(archive(tmp_path / "a.pt2", [NODE | {"target": target}]))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('id')", "eval('1')", "exec(chr(105))", "s0.real", "open('s1')", "Symbol('os')",
        'Symbol("s1")', "s0[0]", "lambda: s0", "{s0}", "getattr(s0, 's1')", "Symbol('s1').func", "s0 if s1 else s2", 3,
    ],
)  # fmt: skip
def test_sizes_and_guards_that_are_no_arithmetic_are_refused(tmp_path: Path, text: Any) -> None:
    with pytest.raises(ConversionError, match="holds the size"):
        check_export_archive(archive(tmp_path / "a.pt2", {"size": {"expr_str": text}}))
    with pytest.raises(ConversionError, match="holds the condition"):
        check_export_archive(archive(tmp_path / "a.pt2", {"guards_code": [text]}))


@pytest.mark.parametrize(
    "guard", ["L['x'].__class__", "L['x'].size().__class__", "L[open('x')]", "L['x'].size", "X['x']"]
)
def test_guards_ask_for_sizes_only(tmp_path: Path, guard: str) -> None:
    with pytest.raises(ConversionError, match="holds the condition"):
        check_export_archive(archive(tmp_path / "a.pt2", {"guards_code": [guard]}))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    document = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
    with pytest.raises(ConversionError, match=r"model_weights_config.json holds an object as a pickle"):
        check_export_archive(
            archive(tmp_path / "a.pt2", document, name="m/data/weights/model_weights_config.json")
        )


def test_compiled_code_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", {}, extra={"m/data/aotinductor/model/wrapper.so": ""})
    with pytest.raises(ConversionError, match="AOTInductor"):
        check_export_archive(path)


def test_a_name_that_stands_for_two_files_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", {})
    with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("m/models/model.json", "{}")
    with pytest.raises(ConversionError, match="twice"):
        check_export_archive(path)


def test_an_archive_without_a_graph_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", {}, name="m/version")
    with pytest.raises(ConversionError, match="no graph"):
        check_export_archive(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_damaged_documents_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("m/models/model.json", content)
    with pytest.raises(ConversionError, match="damaged"):
        check_export_archive(path)


def test_a_document_that_inflates_without_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
        target.open("m/models/model.json", "w") as file,
    ):
        for _ in range(257):
            file.write(b" " * (1 << 20))
    with pytest.raises(ConversionError, match="more than 268435456"):
        check_export_archive(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("archive") / "a.pt2"
    path.write_bytes(content)
    with pytest.raises(ConversionError):
        check_export_archive(path)


@settings(max_examples=100, deadline=None)
@given(expression=st.text(alphabet="s01 ()+-*/%,<>=", max_size=30))
def test_arithmetic_on_symbols_is_let_through(
    tmp_path_factory: pytest.TempPathFactory, expression: str
) -> None:
    """Whatever is spelled without a name or an attribute; symbols are s and digits."""
    known = all(word.lstrip("s").isdigit() and word.count("s") == 1 for word in _words(expression))
    path = archive(tmp_path_factory.mktemp("archive") / "a.pt2", {"expr_str": expression})
    if known:
        check_export_archive(path)


def _words(expression: str) -> list[str]:
    words = "".join(letter if letter in "s01" else " " for letter in expression).split()
    return [word for word in words if "s" in word]
