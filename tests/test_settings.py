"""Settings: where they come from, what they take, and that the documents say the same."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_serve import settings as settings_module
from onnx_serve.errors import SettingsError, quote
from onnx_serve.settings import SETTINGS, Settings, load_settings, reference_file, with_model_settings
from onnx_serve.yaml_file import render_yaml

ROOT = Path(__file__).parent.parent
JOB_KEYS = ("batch", "max_payload_mb", "batch_strategy", "max_concurrent_transforms")


def load(
    environ: Mapping[str, str] | None = None,
    *,
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    return load_settings(config_file=file, environ=environ or {}, flags=flags or {})


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    file = folder / name
    file.write_text(text, "utf-8")
    return file


def model_file(folder: Path, text: str) -> Path:
    return write(folder, text, "onnx_serve.yaml")


# The documents


def default_text(key: str) -> str:
    return render_yaml(getattr(Settings(), key))


def test_config_yaml_is_every_setting_with_its_default_and_its_comment() -> None:
    """Keys, order, defaults, values and meanings of the reference are those of the declarations."""
    text = (ROOT / "config.yaml").read_text("utf-8")
    entries = [
        f"# {setting.meaning} Values: {setting.kind.expected}.\n{key}: {default_text(key)}\n"
        for key, setting in SETTINGS.items()
    ]
    header, _, rest = text.partition("\n\n")
    assert all(line.startswith("#") for line in header.splitlines())
    assert rest == "\n".join(entries)


def test_config_yaml_read_alone_gives_the_defaults(tmp_path: Path) -> None:
    copy = write(tmp_path, (ROOT / "config.yaml").read_text("utf-8"))
    loaded = load(file=copy)
    assert all(getattr(loaded, key) == getattr(Settings(), key) for key in SETTINGS)
    assert {loaded.sources[key] for key in SETTINGS} == {"config file"}


def test_configuration_document_has_a_row_for_each_setting() -> None:
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    rows = []
    for key, setting in SETTINGS.items():
        scope = "model" if setting.model_level else "server"
        names = ", ".join(f"`{name}`" for name in (f"ONNX_SERVE_{key.upper()}", *setting.variables))
        rows.append(
            f"| `{key}` | `{default_text(key)}` | {setting.kind.expected} | {scope} | {names} "
            f"| {setting.meaning} |"
        )
    assert [line for line in text.splitlines() if re.match(r"\| `[a-z]", line)] == rows


def test_configuration_document_has_a_row_for_each_variable_of_a_job() -> None:
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    rows = [f"| `{job.variable}` | {job.kind.expected} |" for job in settings_module._JOB.values()]
    assert [line for line in text.splitlines() if line.startswith("| `SAGEMAKER")] == rows


def test_examples_of_the_configuration_document_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    of_model, of_server = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert with_model_settings(load(), model_file(tmp_path, of_model)).json_non_finite == "null"
    assert load(file=write(tmp_path, of_server)).waiting_room == 16
    messages = re.findall(r"^config\.yaml: .*$", text, re.MULTILINE)
    for line, broken in zip(messages, ("port: abc", "slot: 1"), strict=True):
        with pytest.raises(SettingsError) as error:
            load(file=write(tmp_path, broken))
        assert str(error.value) == line.replace("config.yaml", str(tmp_path / "config.yaml"), 1)


def test_defaults_pass_their_own_checks() -> None:
    for key, setting in SETTINGS.items():
        default = getattr(Settings(), key)
        as_yaml = yaml.safe_load(default_text(key))
        assert setting.kind.check(as_yaml) == default, key


# Precedence

LAYERS = (
    "default",
    "config file",
    "onnx_serve.yaml",
    "ONNX_SERVE_OUTPUTS",
    "SAGEMAKER_INFERENCE_OUTPUT",
    "--outputs",
)


@given(present=st.sets(st.sampled_from(LAYERS[1:])))
@settings(max_examples=32, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_highest_source_wins_and_is_remembered(tmp_path: Path, present: set[str]) -> None:
    """For every subset of the sources of one setting."""
    file = write(tmp_path, "outputs: ['config file']" if "config file" in present else "")
    environ = {name: name for name in present if name.isupper()}
    loaded = load(environ, file=file, flags={"outputs": "--outputs"} if "--outputs" in present else {})
    if "onnx_serve.yaml" in present:
        loaded = with_model_settings(loaded, model_file(tmp_path, "outputs: [onnx_serve.yaml]"))
    winner = max(present, key=LAYERS.index, default="default")
    assert loaded.sources["outputs"] == winner
    assert loaded.outputs == (() if winner == "default" else (winner,))


def test_every_setting_has_a_source_and_a_line() -> None:
    loaded = load({"SAGEMAKER_BIND_TO_PORT": "9000", "SAGEMAKER_BATCH": "true"}, flags={"slots": 2})
    assert list(loaded.sources) == [*SETTINGS, *JOB_KEYS]
    lines = loaded.describe()
    assert "port: 9000 (SAGEMAKER_BIND_TO_PORT)" in lines
    assert "slots: 2 (--slots)" in lines
    assert "batch: true (SAGEMAKER_BATCH)" in lines
    assert "providers: auto (default)" in lines
    assert "default_model: null (default)" in lines


def test_config_flag_wins_over_its_variable(tmp_path: Path) -> None:
    named = write(tmp_path, "waiting_room: 1", "named.yaml")
    environ = {"ONNX_SERVE_CONFIG": str(write(tmp_path, "waiting_room: 2"))}
    assert load(environ).waiting_room == 2
    assert load(environ, file=named).waiting_room == 1


def test_shipped_file_counts_as_the_defaults_until_someone_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel carries the file inside the package, a checkout beside it."""
    assert reference_file() == ROOT / "config.yaml"
    assert set(load().sources.values()) == {"default"}
    package = tmp_path / "onnx_serve"
    package.mkdir()
    monkeypatch.setattr(settings_module, "__file__", str(package / "settings.py"))
    assert reference_file() is None
    assert load() == Settings()
    write(tmp_path, "port: 1")
    write(package, "port: 8080\nwaiting_room: 3")
    loaded = load()
    assert reference_file() == package / "config.yaml"
    assert (loaded.waiting_room, loaded.sources["waiting_room"]) == (3, "config file")
    assert (loaded.port, loaded.sources["port"]) == (8080, "default")


def test_empty_variables_are_unset() -> None:
    assert load({"ONNX_SERVE_PORT": "", "SAGEMAKER_BIND_TO_PORT": " ", "ONNX_SERVE_NONE": ""}) == load()


def test_flags_that_were_not_given_are_unset() -> None:
    assert load({"ONNX_SERVE_PORT": "9000"}, flags={"port": None}).port == 9000


def test_settings_of_one_model_do_not_reach_the_next(tmp_path: Path) -> None:
    base = load()
    first = with_model_settings(base, model_file(tmp_path, "block_rows: 8"))
    assert (first.block_rows, first.sources["block_rows"]) == (8, "onnx_serve.yaml")
    assert base.block_rows == "auto"
    # The same source again replaces its own value.
    assert with_model_settings(first, model_file(tmp_path, "block_rows: 9")).block_rows == 9


# Values

VALID: list[tuple[str, object, object]] = [
    ("model_dir", "models", Path("models")),
    ("port", 0, 0),
    ("port", 65535, 65535),
    ("default_model", "resnet", "resnet"),
    ("default_model", None, None),
    ("allow_links", True, True),
    ("outputs", [], ()),
    ("outputs", ["b", "a"], ("b", "a")),
    ("log_level", "WARN", "warning"),
    ("log_level", 0, "debug"),
    ("log_level", 25, "warning"),
    ("log_level", 50, "error"),
    ("default_accept", "Text/CSV; charset=utf-8", "text/csv"),
    ("default_accept", "application/vnd.apache.parquet", "application/vnd.apache.parquet"),
    ("default_accept", 'text/csv;a=b ; c="x; \\" y" ;', "text/csv"),
    ("providers", "auto", "auto"),
    ("providers", ["CUDA", "cpu"], ("CUDAExecutionProvider", "CPUExecutionProvider")),
    ("providers", ["OpenVINOExecutionProvider"], ("OpenVINOExecutionProvider",)),
    (
        "session_options",
        {"a.b": True, "c": 3, "d": "x", "e": False},
        {"a.b": "1", "c": "3", "d": "x", "e": "0"},
    ),
    ("provider_options", {"cuda": {"device_id": 1}}, {"CUDAExecutionProvider": {"device_id": "1"}}),
    ("slots", "auto", "auto"),
    ("slots", 4, 4),
    ("queue_timeout_ms", 0, 0),
    ("csv_header", "Present", "present"),
    ("record_errors", "placeholder", "placeholder"),
    ("json_non_finite", None, "null"),
    ("json_non_finite", "null", "null"),
    ("chunk_bytes", 4096, 4096),
    ("max_body_bytes", 0, 0),
    ("connection_limit", 100, 100),
]


@pytest.mark.parametrize(("key", "value", "expected"), VALID)
def test_valid_values_of_a_file(tmp_path: Path, key: str, value: object, expected: object) -> None:
    file = write(tmp_path, yaml.safe_dump({key: value}))
    assert getattr(load(file=file), key) == expected


INVALID: list[tuple[str, object, str]] = [
    ("model_dir", "", '""'),
    ("model_dir", "a\0b", r'"a\x00b"'),
    ("host", "a b", '"a b"'),
    ("port", "8080", '"8080"'),
    ("port", True, "true"),
    ("port", 80.5, "80.5"),
    ("port", -1, "-1"),
    ("port", 65536, "65536"),
    ("port", 1 << 64, "an integer beyond 64 bits"),
    ("port", None, "null"),
    ("default_model", 3, "3"),
    ("default_model", "a\nb", r'"a\x0ab"'),
    ("allow_links", "true", '"true"'),
    ("allow_links", 1, "1"),
    ("outputs", "a", '"a"'),
    ("outputs", ["a", "a"], '"a" twice'),
    ("outputs", ["a", ""], '"" in it'),
    ("outputs", [["a"]], "a list in it"),
    ("log_level", "loud", '"loud"'),
    ("log_level", 51, "51"),
    ("log_level", True, "true"),
    ("default_accept", "csv", '"csv"'),
    ("default_accept", "*/*", '"*/*"'),
    ("default_accept", "text/*", '"text/*"'),
    ("default_accept", "/csv", '"/csv"'),
    ("default_accept", "text/csv, application/json", '"text/csv, application/json"'),
    ("default_accept", "text/csv; header", '"text/csv; header"'),
    ("default_accept", 'text/csv; a="b', '"text/csv; a="b"'),
    ("default_accept", "text/csv" + "; " * 2000 + "?", f'"text/csv{"; " * 16}..."'),
    ("default_accept", f"text/{'a' * 128}", f'"text/{"a" * 35}..."'),
    ("providers", "cpu", '"cpu"'),
    ("providers", [], "an empty list"),
    ("providers", ["gpu"], '"gpu"'),
    ("providers", [1], "1"),
    ("providers", ["cpu", "CPUExecutionProvider"], '"CPUExecutionProvider" twice'),
    ("session_options", ["a"], "a list"),
    ("session_options", {"a": 0.5}, '0.5 for "a"'),
    ("session_options", {"a": None}, 'null for "a"'),
    ("session_options", {"a": {"b": 1}}, 'a map for "a"'),
    ("session_options", {"a": 1 << 64}, 'an integer beyond 64 bits for "a"'),
    ("session_options", {"a": "x\ny"}, r'"x\x0ay" for "a"'),
    ("session_options", {1: "a"}, "the key 1"),
    ("session_options", {True: "a"}, "the key true"),
    ("provider_options", "cuda", '"cuda"'),
    ("provider_options", {"cuda": 1}, "1"),
    ("provider_options", {"cuda": {}, "CUDAExecutionProvider": {}}, '"CUDAExecutionProvider" twice'),
    ("slots", 0, "0"),
    ("slots", "many", '"many"'),
    ("waiting_room", 1 << 30, str(1 << 30)),
    ("waiting_room", "auto", '"auto"'),
    ("chunk_bytes", 4095, "4095"),
    ("connection_limit", 99, "99"),
    ("csv_header", "maybe", '"maybe"'),
    ("record_errors", "skip", '"skip"'),
    ("csv_header", None, "null"),
    ("text_trailing_newline", None, "null"),
    ("image", "x", '"x"'),
    ("image", {"colour": 1}, 'the key "colour"'),
    ("image", {"layout": "nchw"}, '"nchw"'),
    ("image", {"size": 224}, "224"),
    ("image", {"size": [224, 0]}, "0"),
    ("image", {"scale": "1/255"}, '"1/255"'),
    ("image", {"mean": [0.5, "a"]}, '"a"'),
    ("image", {"std": [0.2, 0]}, "a std of 0"),
]


def test_image_settings_of_a_model(tmp_path: Path) -> None:
    text = (
        "image: {size: [32, 48], mean: [0.5, 0.4, 0.3], std: 0.25, layout: hwc, channel_order: bgr, scale: 1}"
    )

    assert with_model_settings(load(), model_file(tmp_path, text)).image == {
        "size": (32, 48),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.25,),
        "layout": "hwc",
        "channel_order": "bgr",
        "scale": 1.0,
    }


@pytest.mark.parametrize(("key", "value", "got"), INVALID)
def test_invalid_values_of_a_file(tmp_path: Path, key: str, value: object, got: str) -> None:
    """The line names the file, the setting, what is expected and what came."""
    file = write(tmp_path, yaml.safe_dump({key: value}))
    with pytest.raises(SettingsError) as error:
        load(file=file)
    assert str(error.value) == f'{file}: setting "{key}": expected {SETTINGS[key].kind.expected}, got {got}'


VARIABLES: list[tuple[str, str, str, object]] = [
    ("SM_MODEL_DIR", "/m", "model_dir", Path("/m")),
    ("SAGEMAKER_BASE_DIR", "/base/", "model_dir", Path("/base/model")),
    ("SAGEMAKER_BIND_TO_PORT", " 9001 ", "port", 9001),
    ("SAGEMAKER_INFERENCE_OUTPUT", "label, scores", "outputs", ("label", "scores")),
    ("SAGEMAKER_CONTAINER_LOG_LEVEL", "10", "log_level", "debug"),
    ("SAGEMAKER_CONTAINER_LOG_LEVEL", "Critical", "log_level", "error"),
    ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv", "default_accept", "text/csv"),
    ("SAGEMAKER_MODEL_SERVER_WORKERS", "3", "slots", 3),
    ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "60", "request_timeout_ms", 60_000),
    ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "0.25", "request_timeout_ms", 250),
    ("MAX_CONTENT_LENGTH", "0", "max_body_bytes", 0),
    ("ONNX_SERVE_SLOTS", "AUTO", "slots", "auto"),
    ("ONNX_SERVE_PROVIDERS", "cuda,cpu", "providers", ("CUDAExecutionProvider", "CPUExecutionProvider")),
    ("ONNX_SERVE_PROVIDERS", "auto", "providers", "auto"),
    ("ONNX_SERVE_SESSION_OPTIONS", '{"a": true}', "session_options", {"a": "1"}),
    ("ONNX_SERVE_PROVIDER_OPTIONS", "cpu: {a: b}", "provider_options", {"CPUExecutionProvider": {"a": "b"}}),
    ("ONNX_SERVE_ALLOW_LINKS", "Yes", "allow_links", True),
    ("ONNX_SERVE_TEXT_TRAILING_NEWLINE", "0", "text_trailing_newline", False),
    ("ONNX_SERVE_DEFAULT_MODEL", "null", "default_model", None),
    ("ONNX_SERVE_JSON_NON_FINITE", "null", "json_non_finite", "null"),
    ("SAGEMAKER_BATCH", "True", "batch", True),
    ("SAGEMAKER_BATCH", "false", "batch", False),
    ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "0", "max_payload_mb", 0),
    ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "100", "max_payload_mb", 100),
    ("SAGEMAKER_BATCH_STRATEGY", "MultiRecord", "batch_strategy", "MULTI_RECORD"),
    ("SAGEMAKER_BATCH_STRATEGY", "SINGLE_RECORD", "batch_strategy", "SINGLE_RECORD"),
    ("SAGEMAKER_BATCH_STRATEGY", "single_record", "batch_strategy", "SINGLE_RECORD"),
    ("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", "8", "max_concurrent_transforms", 8),
]


@pytest.mark.parametrize(("name", "text", "key", "expected"), VARIABLES)
def test_variables(name: str, text: str, key: str, expected: object) -> None:
    loaded = load({name: text})
    assert (getattr(loaded, key), loaded.sources[key], loaded.warnings) == (expected, name, ())


def test_model_folder_wins_over_the_folder_above_it() -> None:
    loaded = load({"SAGEMAKER_BASE_DIR": "/base", "SM_MODEL_DIR": "/m"})
    assert (loaded.model_dir, loaded.sources["model_dir"]) == (Path("/m"), "SM_MODEL_DIR")


@pytest.mark.parametrize(
    ("name", "text", "key", "got"),
    [
        ("ONNX_SERVE_PORT", "abc", "port", '"abc"'),
        ("ONNX_SERVE_PORT", "tcp://10.0.0.1:80", "port", '"tcp://10.0.0.1:80"'),
        ("ONNX_SERVE_PORT", "9" * 30, "port", f'"{"9" * 30}"'),
        ("ONNX_SERVE_PORT", "\u0663", "port", '"\u0663"'),
        ("ONNX_SERVE_ALLOW_LINKS", "maybe", "allow_links", '"maybe"'),
        ("ONNX_SERVE_OUTPUTS", "a,,b", "outputs", '"" in it'),
        ("ONNX_SERVE_SESSION_OPTIONS", "a", "session_options", '"a"'),
        ("ONNX_SERVE_SESSION_OPTIONS", "{a: 1", "session_options", "invalid YAML: "),
        ("SAGEMAKER_BIND_TO_PORT", "x", "port", '"x"'),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "-1", "request_timeout_ms", '"-1"'),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "inf", "request_timeout_ms", '"inf"'),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "0", "slots", "0"),
        ("SM_MODEL_DIR", "\udc80", "model_dir", r'"\xdc80"'),
    ],
)
def test_invalid_variables(name: str, text: str, key: str, got: str) -> None:
    with pytest.raises(SettingsError) as error:
        load({name: text})
    start = f'{name}: setting "{key}": expected {SETTINGS[key].kind.expected}, got {got}'
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("SAGEMAKER_BATCH", "perhaps", "batch"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "abc", "max_payload_mb"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "-1", "max_payload_mb"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "1000000000", "max_payload_mb"),
        ("SAGEMAKER_BATCH_STRATEGY", "ALL", "batch_strategy"),
        ("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", "1.5", "max_concurrent_transforms"),
        ("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", "1000000000", "max_concurrent_transforms"),
    ],
)
def test_nonsense_of_a_job_is_a_warning(name: str, text: str, key: str) -> None:
    loaded = load({name: text})
    assert (getattr(loaded, key), loaded.sources[key]) == (getattr(Settings(), key), "default")
    assert len(loaded.warnings) == 1
    assert loaded.warnings[0].startswith(f"{name} is ignored: expected ")
    assert loaded.warnings[0].endswith(f'got "{text}"')


def test_a_job_that_asks_for_zero_transforms_leaves_their_number_open() -> None:
    loaded = load({"SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "0"})
    assert (loaded.max_concurrent_transforms, loaded.warnings) == (None, ())
    assert loaded.sources["max_concurrent_transforms"] == "default"


# Unknown names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slot: 1", 'unknown setting "slot"; did you mean "slots"?'),
        ("max-body-bytes: 1", 'unknown setting "max-body-bytes"; did you mean "max_body_bytes"?'),
        ("zzz: 1", 'unknown setting "zzz"'),
        ("8080: 1", "unknown setting 8080"),
        (f"{'x' * 200}: 1", f'unknown setting "{"x" * 40}..."'),
        ("batch: true", 'unknown setting "batch"'),
    ],
)
def test_unknown_settings_of_a_file(tmp_path: Path, text: str, problem: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        load(file=file)
    assert str(error.value).startswith(f"{file}: {problem}")


def test_unknown_variable() -> None:
    with pytest.raises(SettingsError) as error:
        load({"ONNX_SERVE_SLOT": "1"})
    assert str(error.value) == 'ONNX_SERVE_SLOT: unknown variable; did you mean "ONNX_SERVE_SLOTS"?'


def test_variables_of_others_are_left_alone() -> None:
    assert load({"SAGEMAKER_REGION": "x", "PATH": "y", "ONNX_SERVER_PORT": "z"}) == load()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"waiting_rom": 1}, '--waiting-rom: unknown flag; did you mean "waiting_room"?'),
        ({"waiting_room": "x"}, '--waiting-room: setting "waiting_room": expected an integer'),
        ({"waiting_room": -1}, '--waiting-room: setting "waiting_room": expected an integer'),
    ],
)
def test_bad_flags(flags: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(problem)}"):
        load(flags=flags)


def test_settings_of_the_server_are_refused_in_a_model_folder(tmp_path: Path) -> None:
    """The message names the model, but no path of the server."""
    folder = tmp_path / "iris"
    folder.mkdir()
    with pytest.raises(SettingsError) as error:
        with_model_settings(load(), model_file(folder, "port: 80"))
    assert str(error.value) == (
        'iris/onnx_serve.yaml: "port" is not a model\'s setting; expected one of outputs, session_options, '
        "block_rows, rows, csv_header, json_non_finite, text_trailing_newline, record_errors, image"
    )


@pytest.mark.parametrize(
    "option",
    [
        "session.model_external_initializers_file_folder_path",
        "session.optimized_model_FilePath",
        "session.collect_node_memory_stats_to_file",
        "session.custom_ops_library",
        "session.moe.offload.derived_cache_dir",
        "session.moe.offload.source_root",
        "session.resource_cuda_partitioning_settings",
        "session.enable_profiling",
        "ep.context_enable",
        "some.folder",
    ],
)
def test_session_options_that_touch_files_are_the_operators(tmp_path: Path, option: str) -> None:
    """A model's author could otherwise go round the checks of its files; the operator may."""
    text = f"session_options: {{session.disable_prepacking: 1, {option}: x}}"
    folder = tmp_path / "iris"
    folder.mkdir()
    with pytest.raises(SettingsError) as error:
        with_model_settings(load(), model_file(folder, text))
    assert str(error.value) == (
        f'iris/onnx_serve.yaml: setting "session_options": {quote(option)} names a file or folder, or loads '
        "code: only the operator of the server may set it, in the config file"
    )
    assert load(file=write(tmp_path, text)).session_options[option] == "x"


@pytest.mark.parametrize(
    "option",
    [
        "session.intra_op.allow_spinning",
        "session.disable_prepacking",
        "session.set_denormal_as_zero",
        "session.dynamic_block_base",
        "optimization.disable_specified_optimizers",
    ],
)
def test_session_options_of_a_model(tmp_path: Path, option: str) -> None:
    file = model_file(tmp_path, f"session_options: {{{option}: 1}}")
    assert with_model_settings(load(), file).session_options == {option: "1"}


# Files

NOT_SETTINGS: list[tuple[str, str, str]] = [
    ("list", "[1]", "expected a map of settings, got a list"),
    ("word", "abc", 'expected a map of settings, got "abc"'),
    ("unclosed", "port: [", "got invalid YAML: "),
    ("two documents", "port: 1\n---\nport: 2", "but found another document (line 2, column 1)"),
    ("key twice", "port: 1\nport: 2", 'got invalid YAML: the key "port" twice (line 2, column 1)'),
    ("inner key twice", "session_options: {a: 1, a: 2}", 'the key "a" twice'),
    ("alias", "session_options: &a {x: *a}", "an anchor, alias or tag (line 1, column 18)"),
    ("merge", "<<: {port: 1}", "a key that is no name"),
    ("key that is a list", "? [a]\n: 1", "a key that is no name"),
    ("tag", "port: !!python/object:os.system x", "an anchor, alias or tag"),
    ("no such date", "host: 2024-99-99", "a character or number that it does not allow"),
    ("no such number", "port: 0x_", "a character or number that it does not allow"),
    ("control character", "host: \x01", "a character or number that it does not allow"),
    ("deep", "host: " + "[" * 2_000, "YAML that is nested too deeply"),
    ("many", "outputs: [" + "a," * 20_000 + "]", "too many values"),
    ("long", "port: 1" + ":59" * 2_000, "a value that is too long"),
    ("large", "#" * (1 << 20) + "\n", "more than 1048576 bytes"),
    ("huge number as key", f"? 0x{'f' * 4000}\n: 1", "unknown setting an integer beyond 64 bits"),
    ("date", "host: 2024-01-01", 'got "2024-01-01"'),
]


@pytest.mark.parametrize(("text", "problem"), [pytest.param(t, p, id=i) for i, t, p in NOT_SETTINGS])
def test_files_that_are_no_settings(tmp_path: Path, text: str, problem: str) -> None:
    """One short line, whatever the file holds."""
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        load(file=file)
    message = str(error.value).removeprefix(f"{file}: ")
    assert problem in message
    assert len(message) < 250
    assert "\n" not in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"host: \xff\xfe\xfa")
    with pytest.raises(SettingsError, match="invalid YAML"):
        load(file=file)


def test_an_empty_file_chooses_nothing(tmp_path: Path) -> None:
    assert load(file=write(tmp_path, "# nothing\n")) == Settings()


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "parent is a file"])
def test_what_is_no_readable_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "parent is a file":
        path.write_text("")
        path /= "config.yaml"
    with pytest.raises(SettingsError, match="expected a file"):
        load(file=path)


def test_links_in_a_model_folder_follow_allow_links(tmp_path: Path) -> None:
    """Else a model archive could show the start of any file of the server."""
    link = tmp_path / "onnx_serve.yaml"
    link.symlink_to(write(tmp_path, "block_rows: 2", "elsewhere.yaml"))
    with pytest.raises(SettingsError, match="got a link"):
        with_model_settings(load(), link)
    assert with_model_settings(load(flags={"allow_links": True}), link).block_rows == 2


# Laws


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that chooses nothing: the shipped one need not be read a thousand times."""
    return write(tmp_path_factory.mktemp("empty"), "")


def outcome(
    environ: Mapping[str, str] | None = None,
    *,
    file: Path,
    flags: Mapping[str, object] | None = None,
) -> Settings | str:
    """The settings, or the message that refuses them; any other exception is a failure."""
    try:
        return load(environ, file=file, flags=flags)
    except SettingsError as error:
        return str(error)


@given(text=st.text(max_size=60) | st.from_regex(r"[a-z_]{1,9}: [^\n]{0,30}\n?", fullmatch=True))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_settings_or_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    result = outcome(file=file)
    if isinstance(result, str):
        assert result.startswith(f"{file}: ")
        assert "\n" not in result
    else:
        assert set(result.sources.values()) <= {"default", "config file"}


@given(
    key=st.sampled_from(sorted(SETTINGS)), text=st.text(st.characters(exclude_characters="\0"), max_size=40)
)
@settings(max_examples=300, deadline=None)
def test_any_variable_gives_settings_or_one_line(empty: Path, key: str, text: str) -> None:
    name = f"ONNX_SERVE_{key.upper()}"
    result = outcome({name: text}, file=empty)
    if isinstance(result, str):
        assert result.startswith(f"{name}: ")
        assert "\n" not in result
    else:
        assert result.sources[key] == (name if text.strip() else "default")


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(SETTINGS)), value=YAML_VALUES)
@settings(max_examples=300, deadline=None)
def test_what_is_shown_reads_back_as_the_same_value(empty: Path, key: str, value: object) -> None:
    """A value as ``describe`` shows it is YAML for the same value, for any value that a setting takes."""
    result = outcome(file=empty, flags={key: value})
    if not isinstance(result, str):
        accepted = getattr(result, key)
        shown = render_yaml(accepted)
        # Text is shown bare, and as it is.
        again = shown if isinstance(accepted, str | Path) else yaml.safe_load(shown)
        assert SETTINGS[key].kind.check(again) == accepted
