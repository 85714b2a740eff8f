"""A zoo of models for measurements: one folder for each, and records that suit it.

    python -m bench.model_zoo ZOO [--models a,b]

Each kind of model that people serve, seeded, so that every zoo is the same; what a folder already holds is
not built again. ``records`` draws a model's inputs; ``bench.payloads`` writes them as requests. One of the
models is real: the text detector of rapidocr-onnxruntime (Apache-2.0), fetched with pip; without it a
network of random weights and the same input takes its place.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import zoo_networks as networks
from bench import zoo_pipelines as pipelines

CSV, JSON_LINES, JSON, NPY = "text/csv", "application/jsonlines", "application/json", "application/x-npy"
_TABLE = (CSV, JSON_LINES, JSON, NPY)
_TEXT = (CSV, JSON_LINES, JSON)
_OBJECTS = (JSON_LINES, JSON)
_IMAGES = (NPY, CSV, JSON_LINES)
_DETECTOR = "rapidocr-onnxruntime==1.4.4"
_DETECTOR_FILE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_DETECTOR_SHA256 = "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"
_DETECTOR_PIXELS = 320
_LENGTHS = (32, 64, 128)

Records = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ZooModel:
    """One kind of model.

    Attributes:
        build: Writes the model file; its folder exists.
        draw: That many seeded records: inputs by name, dimension 0 the records. The non-batch dimensions
            of free ones may differ from call to call.
        formats: Media types of requests, the one that such jobs use most first.
        sample: Records that the folder carries as a sample request: without them nobody can know how large an
            input of free dimensions, or how long a text, will be.
    """

    build: Callable[[Path], None]
    draw: Callable[[np.random.Generator, int], Records]
    formats: tuple[str, ...]
    sample: int = 0


def _normal(*shape: int) -> Callable[[np.random.Generator, int], Records]:
    """Four decimals, as such files have them."""

    def draw(rng: np.random.Generator, count: int) -> Records:
        return {"x": np.round(rng.standard_normal((count, *shape), np.float32), 4)}

    return draw


def _image(name: str, pixels: int) -> Callable[[np.random.Generator, int], Records]:
    """8-bit values scaled to [0, 1)."""

    def draw(rng: np.random.Generator, count: int) -> Records:
        values = rng.integers(0, 256, (count, 3, pixels, pixels)).astype(np.float32) / 256
        return {name: values}

    return draw


def _tokens(rng: np.random.Generator, count: int) -> Records:
    """Padded to the longest of the batch, as a tokenizer does; batches differ."""
    length = int(rng.choice(_LENGTHS))
    used = rng.integers(length // 2, length + 1, count)
    used[0] = length
    mask = (np.arange(length) < used[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(1, networks.VOCABULARY, (count, length)) * mask, "attention_mask": mask}


def _ids(rng: np.random.Generator, count: int) -> Records:
    return {"ids": rng.integers(0, networks.TABLE_ROWS, (count, networks.TABLE_IDS))}


def _sentences(rng: np.random.Generator, count: int) -> Records:
    """10 to 70 words, some of them unknown to the model."""
    words = np.array([f"w{index}" for index in range(pipelines.WORDS + 500)])
    texts = [" ".join(rng.choice(words, rng.integers(10, 71))) for _ in range(count)]
    return {"text": np.array(texts, object)[:, None]}


def _person(rng: np.random.Generator, count: int) -> Records:
    numbers: Records = {
        name: np.round(rng.standard_normal((count, 1), np.float32), 3) for name in pipelines.NUMBERS
    }
    for name, known in pipelines.CATEGORIES.items():
        drawn = rng.integers(0, known + 1, (count, 1))
        numbers[name] = np.array([[f"{name} {index}"] for index in drawn[:, 0]], object)
    return numbers


def _detector(path: Path) -> None:
    """The real one, or, where pip cannot fetch it, one like it."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*fetch, "-d", folder, _DETECTOR], capture_output=True, check=False)
        for wheel in Path(folder).glob("*.whl") if done.returncode == 0 else ():
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(_DETECTOR_FILE)
            if hashlib.sha256(content).hexdigest() == _DETECTOR_SHA256:
                path.write_bytes(content)
                return
    print(f"{path.parent.name}: {_DETECTOR} cannot be fetched: random weights instead")
    networks.text_detector(path)


_ROW = _normal(pipelines.FEATURES)

MODELS: dict[str, ZooModel] = {
    "linear": ZooModel(pipelines.linear, _ROW, _TABLE),
    "zipmap": ZooModel(pipelines.zipmap, _ROW, _TEXT),
    "forest": ZooModel(pipelines.forest, _ROW, _TEXT),
    "boosting": ZooModel(pipelines.boosting, _ROW, _TABLE),
    "knn": ZooModel(pipelines.nearest_neighbours, _ROW, _TEXT),
    "mlp": ZooModel(networks.perceptron, _ROW, _TABLE),
    "quantised": ZooModel(networks.quantised, _ROW, _TABLE),
    "autoencoder": ZooModel(networks.autoencoder, _normal(networks.WIDE), _TABLE),
    "generator": ZooModel(networks.generator, _normal(networks.LATENT), _TABLE),
    "columns": ZooModel(pipelines.columns, _person, _TEXT),
    "text": ZooModel(pipelines.text, _sentences, _TEXT, sample=64),
    "embedding": ZooModel(networks.embedding, _ids, _TABLE),
    "lstm": ZooModel(networks.lstm, _normal(networks.SEQUENCE, networks.CHANNELS), _TABLE),
    "transformer": ZooModel(networks.transformer, _tokens, _OBJECTS),
    "resnet18": ZooModel(networks.resnet18, _image("image", networks.PIXELS), _IMAGES),
    "unet": ZooModel(networks.unet, _image("image", networks.MASK_PIXELS), _IMAGES),
    "ocr_detector": ZooModel(_detector, _image("x", _DETECTOR_PIXELS), (NPY, JSON_LINES), sample=1),
}


def chosen(names: str | None) -> dict[str, ZooModel]:
    """The models of a comma-separated list, all without one.

    Raises:
        SystemExit: A name is not in the zoo.
    """
    wanted = names.split(",") if names else list(MODELS)
    unknown = [name for name in wanted if name not in MODELS]
    if unknown:
        raise SystemExit(f"no such model: {', '.join(unknown)}; the zoo has {', '.join(MODELS)}")
    return {name: MODELS[name] for name in wanted}


def build(zoo: Path, name: str) -> Path:
    """The model's folder, built unless it is there; a build that is interrupted leaves none."""
    folder, model = zoo / name, MODELS[name]
    if not (folder / "model.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if model.sample:
            [records] = model.draw(np.random.default_rng(0), model.sample).values()
            _write_sample(folder, records)
        unfinished = folder / "model.part"
        model.build(unfinished)
        unfinished.rename(folder / "model.onnx")
    return folder


def _write_sample(folder: Path, records: npt.NDArray[Any]) -> None:
    if records.dtype == object:
        (folder / "sample.jsonl").write_text(
            "".join(f"{json.dumps(record)}\n" for record in records.tolist())
        )
    else:
        np.save(folder / "sample.npy", records)


def main() -> None:
    """Builds the zoo and says what it has."""
    parser = argparse.ArgumentParser(description="Builds models to measure with.")
    parser.add_argument("zoo", type=Path, help="folder of the models' folders")
    parser.add_argument("--models", help="some of them, separated by commas (default: all)")
    options = parser.parse_args()
    for name in chosen(options.models):
        begin = time.perf_counter()
        file = build(options.zoo, name) / "model.onnx"
        took = time.perf_counter() - begin
        print(f"{name:14} {file.stat().st_size / 2**20:8.1f} MiB   {took:5.1f} s   {MODELS[name].formats[0]}")


if __name__ == "__main__":
    main()
