from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from onnx_serve import session as session_module
from onnx_serve.errors import InferenceError, InputRefused, ModelError, OutOfMemory
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.run_errors import one_line, run_error
from onnx_serve.session import _check_started, _prepare_cuda, choose_providers
from onnx_serve.tensors import MapTable, RowAxis


def load(path: Path, **options: object) -> Model:
    return load_model(path, path.stem, SessionOptions(**options))  # type: ignore[arg-type]


def test_runs_and_declares(tmp_path: Path) -> None:
    model = load(onnx_models.linear(tmp_path / "m.onnx"))

    assert [str(spec) for spec in model.signature.inputs] == ["FLOAT[N, 4]"]
    assert model.signature.row_axis is RowAxis.FREE
    outputs = model.run({"x": np.eye(4, dtype=np.float32)})
    assert isinstance(outputs["y"], np.ndarray)
    np.testing.assert_allclose(outputs["y"], np.arange(12).reshape(4, 3) / 10, rtol=1e-6)
    assert model.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize("rows", [1, 5])
def test_fixed_leading_dimension_is_fixed_rows(tmp_path: Path, rows: int) -> None:
    signature = load(onnx_models.linear(tmp_path / "m.onnx", rows=rows)).signature

    assert (signature.row_axis, signature.fixed_rows) == (RowAxis.FIXED, rows)


def test_unnamed_leading_dimension_is_rows(tmp_path: Path) -> None:
    assert load(onnx_models.linear(tmp_path / "m.onnx", rows=None)).signature.row_axis is RowAxis.FREE


def test_an_answer_without_a_row_for_each_row_means_no_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shapes alone would allow rows; the first run shows that there are none."""
    assert load(onnx_models.positions(tmp_path / "m.onnx")).signature.row_axis is RowAxis.NONE
    assert "one request is one run" in caplog.text


def test_rows_that_depend_on_their_company_are_run_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signature = load(onnx_models.company(tmp_path / "m.onnx")).signature

    assert (signature.row_axis, signature.fixed_rows) == (RowAxis.FIXED, 1)
    assert "depends on the rows beside it" in caplog.text


def test_scalar_input_means_no_rows(tmp_path: Path) -> None:
    signature = load(onnx_models.identity(tmp_path / "m.onnx", shape=[])).signature

    assert signature.row_axis is RowAxis.NONE


def test_zipmap_becomes_a_table(tmp_path: Path) -> None:
    model = load(onnx_models.zipmap(tmp_path / "m.onnx", labels=[3, 7]))

    table = model.run({"x": np.array([[0.25, 0.75], [1, 0]], np.float32)})["probabilities"]
    assert isinstance(table, MapTable)
    assert table.keys == (3, 7)
    assert table.values.dtype == np.float32
    assert list(table.dicts()) == [{3: 0.25, 7: 0.75}, {3: 1.0, 7: 0.0}]
    assert model.run({"x": np.zeros((0, 2), np.float32)})["probabilities"].values.shape == (0, 2)  # type: ignore[union-attr]


def test_strings_pass_through(tmp_path: Path) -> None:
    model = load(onnx_models.identity(tmp_path / "m.onnx", onnx_models.STRING, ["N"]))

    assert model.run({"x": np.array(["ä", ""], object)})["y"].tolist() == ["ä", ""]  # type: ignore[union-attr]


def test_selected_outputs_in_their_order(tmp_path: Path) -> None:
    path = onnx_models.two_inputs(tmp_path / "m.onnx")

    assert [spec.name for spec in load(path, outputs=["twice"]).signature.outputs] == ["twice"]
    with pytest.raises(ModelError, match='no output "thrice", only sum, twice'):
        load(path, outputs=["thrice"])


def test_value_that_an_operator_cannot_take_is_the_callers(tmp_path: Path) -> None:
    model = load(onnx_models.lookup(tmp_path / "m.onnx"))

    with pytest.raises(InputRefused, match=r"Gather: .*out of data bounds.*99"):
        model.run({"i": np.array([99])})
    assert model.run({"i": np.array([9])})["y"].shape == (1, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 8", OutOfMemory),
        ("1 : FAIL : Available memory of 5 is smaller than requested bytes of 9", OutOfMemory),
        ("1 : FAIL : Non-zero status code while running Conv node. Status Message: CUDA failure 719", InferenceError),
        ("1 : FAIL : something else", InferenceError),
        ("1 : FAIL : while running Add node. Name:'a' Status Message: /src/x.h:5 shapes differ", InputRefused),
    ],
)  # fmt: skip
def test_whose_fault_a_failed_run_is(message: str, kind: type[Exception]) -> None:
    error = run_error(message)

    assert type(error) is kind
    assert "/src/" not in str(error)


def test_unloadable_file_names_the_file_not_its_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x09 no model")

    with pytest.raises(ModelError) as caught:
        load(tmp_path / "m.onnx")
    assert str(caught.value).startswith("m.onnx: onnxruntime cannot load the model")
    assert str(tmp_path) not in str(caught.value)


def test_unknown_session_option_is_told(tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "m.onnx")

    with pytest.raises(ModelError, match="cannot load"):
        load(path, config={"k" * 5000: "1"})
    echoed = load(path, config={"session.disable_prepacking": "1"}).session_options
    assert echoed["session.disable_prepacking"] == "1"


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        ("auto", ["AzureExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        (
            "auto",
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
        ),
        (["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
    ],
)  # fmt: skip
def test_providers(wanted: str | list[str], available: list[str], chosen: list[str]) -> None:
    assert choose_providers(wanted, available) == chosen


def test_provider_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(ModelError, match="CUDAExecutionProvider was asked for"):
        choose_providers(["CUDAExecutionProvider"], ["CPUExecutionProvider"])


def test_provider_that_does_not_start_is_never_passed_over_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(onnx_models.linear(tmp_path / "m.onnx"), intra_op_threads=2)

    assert model.session_options["intra_op_num_threads"] == "2"
    _check_started(["CPUExecutionProvider"], model.providers, "m", required=True)
    _check_started(["CUDAExecutionProvider"], model.providers, "m", required=False)
    assert (
        "CUDAExecutionProvider could not be started; the session runs on CPUExecutionProvider" in caplog.text
    )
    with pytest.raises(ModelError, match="CUDAExecutionProvider could not be started"):
        _check_started(["CUDAExecutionProvider"], model.providers, "m", required=True)


def test_model_that_no_guess_fits_is_served_untried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Indices 1 and 0 are beyond a table without entries."""
    model = load(onnx_models.lookup(tmp_path / "m.onnx", entries=0))

    assert model.signature.row_axis is RowAxis.FREE
    assert "served untried" in caplog.text


def test_a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for by name, CUDA is an error; chosen by "auto", it is left out with a warning."""
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    loaded: list[bool] = []
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: loaded.append(True))

    assert _prepare_cuda(both, None, required=True) == both
    assert loaded == [True]
    with pytest.raises(ModelError, match="too old"):
        _prepare_cuda(both, "driver 470 is too old", required=True)
    assert _prepare_cuda(both, "driver 470 is too old", required=False) == ["CPUExecutionProvider"]
    assert "driver 470 is too old; running on the CPU" in caplog.text
    assert loaded == [True]


def test_cuda_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Chosen by "auto" it is left out, with its cause in the log; asked for by name it is an error."""
    path = onnx_models.linear(tmp_path / "m.onnx")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    create = session_module._create_session

    def without_cuda(path: Path, options: SessionOptions, providers: Sequence[str]) -> object:
        if "CUDAExecutionProvider" in providers:
            raise ModelError("CUDA failure 35")
        return create(path, options, providers)

    monkeypatch.setattr(session_module, "_create_session", without_cuda)
    session, _ = session_module._open_session(path, SessionOptions(), both)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "CUDA failure 35" in caplog.text
    with pytest.raises(ModelError, match="CUDA failure 35"):
        session_module._open_session(path, SessionOptions(providers=both), both)


def test_a_failure_of_cuda_is_told_in_cudas_words() -> None:
    text = (
        "/onnxruntime_src/cuda_call.cc:122 std::conditional_t<THRW, void> onnxruntime::CudaCall(ERRTYPE) "
        "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=x ; expr=cudaSetDevice(0);"
    )
    assert one_line(RuntimeError(text)).strip() == ("CUDA failure 100: no CUDA-capable device is detected")
