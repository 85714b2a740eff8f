"""The structure that docs/architecture.md promises: imports point one way, one third party a door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "onnx_serve"
# From the bottom up; a module imports from its own layer and from those above it in this list only.
LAYERS: list[set[str]] = [
    {"__init__", "errors", "abandonment"},
    {"data_types", "minifloats", "raw_data", "casting", "value_types"},
    {"tensors", "setting_kinds", "setting_sources", "yaml_file", "settings", "nvml", "gpu_driver", "machine", "allocator"},
    {"protobuf_wire"},
    {"model_files"},
    {"codecs", "feeds", "cuda", "ort_values", "blocks", "run_plan", "rows", "run_errors", "session", "model", "batching", "admission", "memory"},
    {"calibration_record", "calibration_files", "calibration_process", "calibration_feeds", "calibration_graph", "calibration_device", "calibration_measures", "calibration_stages", "calibration", "tuning"},
    {"execution_parameters", "record_errors", "inference", "oip_inference", "parity_record", "golden_rows", "model_loading", "record_cost", "sized_load", "sizing", "model_registry", "load_places", "repository", "inspection"},
    {"request_body", "oip", "sagemaker", "multi_model", "brief_requests"},
    {"batch"},
    {"rehearsal"},
    {"ray", "ray_command"},
    {"app"},
    {"body_budget", "request_parser", "channel", "workers", "server"},
    {"cli", "__main__"},
]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def layer_of(module: str) -> int:
    word = module.split(".")[1] if "." in module else "__init__"
    return next(index for index, layer in enumerate(LAYERS) if word in layer)


def imports_of(path: Path) -> set[str]:
    """The package's own modules that a module imports, wherever in it, but for annotations only."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    known = {name_of(module) for module in MODULES}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & known) or {node.module}
    return {name for name in names if name.split(".")[0] == "onnx_serve"}


def test_every_module_has_a_layer() -> None:
    for path in MODULES:
        layer_of(name_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = layer_of(name_of(path))

    wrong = {name for name in imports_of(path) if layer_of(name) > own}
    assert wrong == set()
    assert "converters" not in path.read_text() or path.stem == "cli"


def test_there_are_no_import_cycles() -> None:
    graph = {name_of(path): imports_of(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(graph.get(name, set())):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("onnx_serve", {"numpy", "onnxruntime", "falcon", "waitress", "yaml"}),
        ("onnx_serve.cli", {"numpy", "onnxruntime", "falcon", "pyarrow"}),
        ("onnx_serve.app", {"onnxruntime", "pyarrow", "onnx", "torch", "sklearn", "google.protobuf", "PIL"}),
        ("onnx_serve.model", {"onnx", "torch", "sklearn", "falcon", "waitress", "pyarrow", "yaml"}),
    ],
)
def test_importing_stays_cheap(module: str, absent: set[str]) -> None:
    """What is not needed is not imported: it would cost every start."""
    program = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert absent & set(loaded.stdout.split()) == set()


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    program = "import os; os.environ.pop('ORT_DISABLE_TELEMETRY', None); import onnx_serve.model; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert result.stdout.strip() == "1"
    source = (PACKAGE / "session.py").read_text()
    assert source.index("ORT_DISABLE_TELEMETRY") < source.index("import onnxruntime")


def test_the_repository_names_no_place_but_itself() -> None:
    """No address of a package index in a lock file, and no module of several hundred lines."""
    root = PACKAGE.parent
    for lock in (root / "requirements").glob("*.txt"):
        assert "://" not in lock.read_text(), lock.name
    long = {path.name: lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 400}
    assert long == {}
