"""The backend test collection of the ``onnx`` package, served.

Every case that onnxruntime passes has, in every format that can carry it, the answer that onnxruntime gives
in-process, to the last bit. (That of a sum may depend on where the inputs lie in memory: any place will do.)
"""

import io
import json
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import requests

import onnx_backend
from onnx_backend import Reference
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.inference import Inference, Limits, Reply
from onnx_serve.model import SessionOptions, load_model
from onnx_serve.oip_inference import OipInference, OipReply
from onnx_serve.run_plan import default_block_rows
from onnx_serve.tensors import Signature, TensorSpec
from serving import ServerProcess, start

SAMPLE = 300
HTTP_SAMPLE = 50
# Types that a small sample may miss.
RARE = (
    "node/test_castlike_FLOAT8E4M3FN_to_FLOAT",
    "node/test_cast_UINT2_to_FLOAT",
    "node/test_cast_e8m0_FLOAT_to_FLOAT8E8M0",
    "node/test_compress_bfloat16",
    "node/test_identity_opt",
    "node/test_optional_has_element_empty_optional_input",
    "node/test_quantizelinear_int4",
    "node/test_sequence_insert_at_back",
    "node/test_string_split_empty_tensor",
)
LENGTH = "Inference-Header-Content-Length"
NON_FINITE = {None: np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


class Message(NamedTuple):
    """A request's or an answer's body, and how long its JSON header is where it has one."""

    body: bytes
    header_length: int | None = None


@dataclass(frozen=True)
class Format:
    """A way to ask: what is sent, and what is to come back.

    Attributes:
        media_type: Of request and answer.
        write: The body for a feed, or None when the format cannot carry it.
        check: Asserts that an answer holds these outputs.
    """

    media_type: str
    write: Callable[[dict[str, Any], Signature], Message | None]
    check: Callable[[Message, dict[str, Any], Signature], None]


def is_tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(value, np.ndarray) for value in values)


# JSON


def json_of(value: Any) -> Any:
    """A value as a client writes it; floats by way of float64, which holds them all."""
    if isinstance(value, np.ndarray):
        return json_of(value.tolist())
    if isinstance(value, list):
        return [json_of(item) for item in value]
    if isinstance(value, dict):
        return {str(key): json_of(item) for key, item in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def says_its_shape(value: Any, spec: TensorSpec | None) -> bool:
    """Whether nested lists have the array's shape: below an empty list no size can be seen."""
    if isinstance(value, list):
        return all(says_its_shape(item, None) for item in value)
    if not isinstance(value, np.ndarray) or value.size:
        return True
    below = value.shape.index(0) + 1
    declared = spec.shape[below:] if spec and spec.is_tensor else ()
    return bool(value.shape[below:] == declared)


def write_json(feed: dict[str, Any], signature: Signature) -> Message | None:
    specs = {spec.name: spec for spec in signature.inputs}
    if not all(says_its_shape(value, specs.get(name)) for name, value in feed.items()):
        return None
    return Message(json.dumps({"inputs": {name: json_of(value) for name, value in feed.items()}}).encode())


def check_json(answer: Message, expected: dict[str, Any], signature: Signature) -> None:
    outputs = json.loads(answer.body)["outputs"]
    assert list(outputs) == list(expected)
    for spec in signature.outputs:
        same_json(outputs[spec.name], expected[spec.name])


def same_json(written: Any, expected: Any) -> None:
    """Whether a JSON value is this value, floats after the rounding that a reader of the type makes."""
    if isinstance(expected, list):
        assert isinstance(written, list)
        assert len(written) == len(expected)
        for item, other in zip(written, expected, strict=True):
            same_json(item, other)
    elif isinstance(expected, dict):
        assert list(written) == [str(key) for key in expected]
        for key, item in expected.items():
            same_json(written[str(key)], np.asarray(item, np.float32) if isinstance(item, float) else item)
    elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        flat = flat_list(written)
        numbers = [NON_FINITE[item] if item is None or isinstance(item, str) else item for item in flat]
        np.testing.assert_array_equal(np.array(numbers, np.float64).astype(expected.dtype), expected.ravel())
        assert shape_of(written) == shape_of(expected.tolist())
    else:
        assert written == (expected.tolist() if isinstance(expected, np.ndarray) else expected)


def flat_list(nested: Any) -> list[Any]:
    return [item for part in nested for item in flat_list(part)] if isinstance(nested, list) else [nested]


def shape_of(nested: Any) -> list[int]:
    return [len(nested), *(shape_of(nested[0]) if nested else [])] if isinstance(nested, list) else []


# Open Inference Protocol


def write_oip(feed: dict[str, Any], signature: Signature) -> Message:
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.defaults)}
    entries = [oip_entry(value, specs[name]) for name, value in feed.items()]
    return Message(json.dumps({"inputs": entries}).encode())


def oip_entry(value: Any, spec: TensorSpec) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype.oip}
    if not spec.is_tensor:
        entry["parameters"] = {"onnx_type": spec.onnx_type}
    if isinstance(value, np.ndarray):
        return entry | {"shape": list(value.shape), "data": json_of(value.ravel())}
    if isinstance(value, list):
        items = [{"shape": list(item.shape), "data": json_of(item.ravel())} if isinstance(item, np.ndarray) else json_of(item)
                 for item in value]  # fmt: skip
        return entry | {"shape": [len(value)], "data": items}
    return entry | {"shape": [0 if value is None else len(value)], "data": json_of(value)}


def check_oip(answer: Message, expected: dict[str, Any], signature: Signature) -> None:
    entries = json.loads(answer.body)["outputs"]
    assert [entry["name"] for entry in entries] == list(expected)
    for entry, spec in zip(entries, signature.outputs, strict=True):
        same_entry(entry, expected[spec.name], spec)


def same_entry(entry: dict[str, Any], value: Any, spec: TensorSpec) -> None:
    """Whether an output written in JSON is this value."""
    assert entry["datatype"] == spec.dtype.oip
    assert entry.get("parameters", {}).get("onnx_type", spec.onnx_type) == spec.onnx_type
    if isinstance(value, np.ndarray):
        assert entry["shape"] == list(value.shape)
        same_json(entry["data"], value.ravel())
    elif isinstance(value, list) and is_tensors(value):
        assert entry["shape"] == [len(value)]
        for item, other in zip(entry["data"], value, strict=True):
            assert item["shape"] == list(other.shape)
            same_json(item["data"], other.ravel())
    else:
        same_json(entry["data"], value)


# Its binary extension


def write_binary(feed: dict[str, Any], signature: Signature) -> Message:
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.defaults)}
    entries = []
    raw = b""
    for name, value in feed.items():
        entry = oip_entry(value, specs[name])
        if isinstance(value, np.ndarray):
            data = bytes_of(value, specs[name].dtype.ort)
            del entry["data"]
            entry["parameters"] = {"binary_data_size": len(data)}
            raw += data
        entries.append(entry)
    header = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    return Message(header + raw, len(header))


def bytes_of(value: Any, word: str) -> bytes:
    if word == "string":
        texts = [text.encode() for text in value.flat]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    if word in onnx_backend.FOREIGN:
        return onnx_backend.pack(value.astype(onnx_backend.FOREIGN[word][0]), word)
    return bytes(value.tobytes())


def check_binary(answer: Message, expected: dict[str, Any], signature: Signature) -> None:
    length = len(answer.body) if answer.header_length is None else answer.header_length
    entries = json.loads(answer.body[:length])["outputs"]
    raw = answer.body[length:]
    assert [entry["name"] for entry in entries] == list(expected)
    for entry, spec in zip(entries, signature.outputs, strict=True):
        value = expected[spec.name]
        if "data" in entry:
            # Only tensors have bytes.
            assert not isinstance(value, np.ndarray) or not spec.is_tensor
            same_entry(entry, value, spec)
            continue
        assert entry["datatype"] == spec.dtype.oip
        assert entry["shape"] == list(value.shape)
        size = entry["parameters"]["binary_data_size"]
        same_bytes(raw[:size], value, spec.dtype.ort)
        raw = raw[size:]
    assert not raw


def same_bytes(raw: bytes, value: Any, word: str) -> None:
    if word in onnx_backend.FOREIGN:
        array = onnx_backend.wide(onnx_backend.unpack(raw, word, value.shape))
        np.testing.assert_array_equal(array, value)
    else:
        assert raw == bytes_of(value, word)


# NumPy's


def npy_of(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array.astype("U") if array.dtype.kind == "O" else array, allow_pickle=False)
    return file.getvalue()


def npy_holds(value: Any) -> bool:
    """NumPy's strings lose NUL at their end."""
    return isinstance(value, np.ndarray) and not (
        value.dtype.kind == "O" and any(text.endswith("\0") for text in value.flat)
    )


def write_npz(feed: dict[str, Any], signature: Signature) -> Message | None:
    given = {name: value for name, value in feed.items() if value is not None}
    if not all(map(npy_holds, given.values())):
        return None
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in given.items():
            archive.writestr(f"{name}.npy", npy_of(value))
    return Message(file.getvalue())


def check_npz(answer: Message, expected: dict[str, Any], signature: Signature) -> None:
    with np.load(io.BytesIO(answer.body), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, value in expected.items():
        if value is None:
            assert name not in arrays
        elif isinstance(value, list):
            keys = [str(key) for key in arrays[f"{name}.keys"].tolist()]
            rows = [dict(zip(keys, row, strict=True)) for row in arrays[name].tolist()]
            same_json(rows, value)
        else:
            same_array(arrays[name], value)


def write_npy(feed: dict[str, Any], signature: Signature) -> Message | None:
    [*values] = feed.values()
    return Message(npy_of(values[0])) if len(values) == 1 and npy_holds(values[0]) else None


def check_npy(answer: Message, expected: dict[str, Any], signature: Signature) -> None:
    [value] = expected.values()
    same_array(np.load(io.BytesIO(answer.body), allow_pickle=False), value)


def same_array(array: Any, expected: Any) -> None:
    assert array.shape == expected.shape
    if expected.dtype.kind == "O":
        assert array.astype(object).tolist() == expected.tolist()
    else:
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


FORMATS = {
    "JSON": Format("application/json", write_json, check_json),
    "OIP JSON": Format("application/json", write_oip, check_oip),
    "OIP binary": Format("application/octet-stream", write_binary, check_binary),
    "NPZ": Format("application/x-npz", write_npz, check_npz),
    "NPY": Format("application/x-npy", write_npy, check_npy),
}


def carries(format_name: str, outputs: dict[str, Any], signature: Signature) -> bool:
    """Whether a format can hold an answer: NumPy's hold arrays and equally keyed maps, NPY one."""
    if format_name in {"JSON", "OIP JSON", "OIP binary"}:
        return True
    if format_name == "NPY":
        return len(outputs) == 1 and all(map(npy_holds, outputs.values()))
    return all(
        npy_holds(outputs[spec.name])
        or (outputs[spec.name] is None and spec.is_optional)
        or (spec.is_map_sequence and len({tuple(entry) for entry in outputs[spec.name]}) <= 1)
        for spec in signature.outputs
    )


class Tally:
    """Cases served and not, by format and by type."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, str]] = Counter()
        self.total: Counter[tuple[str, str]] = Counter()
        self.misses: list[str] = []

    def add(self, name: str, format_name: str, types: set[str], problem: str | None) -> None:
        for kind in ("all", *types):
            self.total[format_name, kind] += 1
            self.passed[format_name, kind] += problem is None
        if problem is not None:
            self.misses.append(f"{name} {format_name}: {problem}")

    def table(self) -> str:
        kinds = sorted({kind for _, kind in self.total}, key=lambda kind: (kind != "all", kind))
        lines = [f"{'passed/total':34}" + "".join(f"{name:>14}" for name in FORMATS)]
        for kind in kinds:
            cells = (f"{self.passed[name, kind]}/{self.total[name, kind]}" for name in FORMATS)
            lines.append(f"{kind:34}" + "".join(f"{cell:>14}" for cell in cells))
        return "\n".join(lines)


def content_of(reply: Reply | OipReply) -> bytes:
    """What a reply holds; a long one is a file."""
    if isinstance(reply.content, bytes):
        return reply.content
    with reply.content as file:
        return file.read()


class InProcess:
    """A model served without HTTP."""

    def __init__(self, path: Path) -> None:
        model = load_model(path, "model", SessionOptions())
        self.signature = model.signature
        self._engine = Engine(
            model.run, model.signature, slots=1, block_rows=default_block_rows(model.signature)
        )
        admission, limits = Admission(2, 2, 1.0), Limits(1 << 28, lambda: 1 << 34)
        self._inference = Inference(self._engine, admission, CodecOptions(), limits)
        self._oip = OipInference(self._engine, admission, CodecOptions(), limits)

    def ask(self, media_type: str, sent: Message) -> Message:
        body = Body(io.BytesIO(sent.body), len(sent.body))
        if sent.header_length is not None:
            reply = self._oip(body, sent.header_length)
            return Message(content_of(reply), reply.header_length)
        answer = self._inference(body, media_type, media_type)
        assert answer.media_type == media_type
        return Message(content_of(answer))

    def close(self) -> None:
        self._engine.close()


class OverHttp:
    """A model that a server of many models has loaded."""

    def __init__(self, path: Path, server: ServerProcess) -> None:
        # What it takes and gives, for the checks; the answers come from the server.
        self.signature = load_model(path, "model", SessionOptions()).signature
        self._name = path.parent.name
        self._server = server
        load = {"model_name": self._name, "url": str(path.parent)}
        response = requests.post(f"{server.url}/models", json=load, timeout=60)
        assert response.status_code == 200, response.text

    def ask(self, media_type: str, sent: Message) -> Message:
        headers = {"Content-Type": media_type, "Accept": media_type}
        url = f"{self._server.url}/models/{self._name}/invoke"
        if sent.header_length is not None:
            headers = {LENGTH: str(sent.header_length)}
            url = f"{self._server.url}/v2/models/{self._name}/infer"
        response = requests.post(url, data=sent.body, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        length = response.headers.get(LENGTH)
        return Message(response.content, int(length) if length else None)

    def close(self) -> None:
        requests.delete(f"{self._server.url}/models/{self._name}", timeout=60).raise_for_status()


def try_case(
    case: onnx_backend.Case,
    reference: Reference,
    open_model: Callable[[], InProcess | OverHttp],
    tally: Tally,
) -> None:
    """Serves one case in every format that can carry it."""
    types = set(reference.types.values())
    try:
        model = open_model()
    except Exception as ex:  # noqa: BLE001  every kind of failure is counted and told
        for format_name in FORMATS:
            tally.add(case.name, format_name, types, f"not loaded: {ex!r}"[:300])
        return
    feed = {key: onnx_backend.wide(value) for key, value in reference.feed.items()}
    expected = outputs_of(reference)
    for format_name, form in FORMATS.items():
        sent = form.write(feed, model.signature)
        if sent is None or not carries(format_name, expected, model.signature):
            continue
        problem = None
        try:
            answer = model.ask(form.media_type, sent)
            try:
                form.check(answer, expected, model.signature)
            except AssertionError:
                check_elsewhere(case, form, answer, model.signature)
        except Exception as ex:  # noqa: BLE001  every kind of failure is counted and told
            problem = " ".join(repr(ex).split())[:300]
        tally.add(case.name, format_name, types, problem)
    model.close()


def outputs_of(reference: Reference) -> dict[str, Any]:
    return {key: onnx_backend.wide(value) for key, value in reference.outputs.items()}


def check_elsewhere(case: onnx_backend.Case, form: Format, answer: Message, signature: Signature) -> None:
    """Whether the answer is the one that onnxruntime gives when its inputs lie elsewhere in memory."""
    problem = AssertionError("onnxruntime answers in-process with other values")
    for offset in range(0, 64, 4):
        reference = onnx_backend.reference(case, offset)
        assert reference is not None
        try:
            form.check(answer, outputs_of(reference), signature)
        except AssertionError as ex:
            problem = ex
        else:
            return
    raise problem


def serve_all(
    names: Iterable[str], folder: Path, open_model: Callable[[Path], InProcess | OverHttp]
) -> Tally:
    tally = Tally()
    for name in names:
        for number, case in enumerate(onnx_backend.case(name)):
            found = onnx_backend.passing(case)
            if found is None:
                continue
            passed, reference = found
            path = folder / f"{name.replace('/', '.')}.{number}" / "model.onnx"
            path.parent.mkdir()
            path.write_bytes(passed.model)
            try_case(passed, reference, partial(open_model, path), tally)
            path.unlink()
    return tally


def report(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{tally.table()}", *tally.misses, sep="\n")
    assert tally.misses == []


def sample(count: int) -> list[str]:
    names = [name for name in onnx_backend.names() if not name.startswith("light/")]
    return sorted({*random.Random(0).sample(names, count), *RARE})


def test_a_sample_is_served_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = serve_all(sample(SAMPLE), tmp_path, InProcess)

    assert tally.total["JSON", "all"] > SAMPLE / 2
    report(tally, capsys)


def test_a_sample_is_served_exactly_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with start(models, tmp_path / "log", {"SAGEMAKER_MULTI_MODEL": "true"}) as server:
        tally = serve_all(sample(HTTP_SAMPLE), models, partial(OverHttp, server=server))

    assert tally.total["OIP binary", "all"] > HTTP_SAMPLE / 2
    report(tally, capsys)


@pytest.mark.slow
def test_the_collection_is_served_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(serve_all(onnx_backend.names(), tmp_path, InProcess), capsys)
