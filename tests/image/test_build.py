"""What is in the image, what is not, and what its build refuses."""

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.container import IMAGE, build, container, docker, inspect
from serving import SAMPLES

REPOSITORY = SAMPLES.parent
IRIS = SAMPLES / "iris-classifier"
MAX_BYTES = 380_000_000
# Everything that the server may import.
IMPORTS = (
    "import onnx_serve.app, onnx_serve.cli, onnx_serve.inference, onnx_serve.model, onnx_serve.server, "
    "onnx_serve.inspection, onnxruntime, numpy, yaml, google.protobuf.message, prometheus_client, "
    "pyarrow.csv, pyarrow.compute, pyarrow.ipc, pyarrow.parquet, PIL.Image, PIL.ImageOps"
)


def in_image(*command: str) -> str:
    """What a program of the image prints."""
    return docker(
        "run", "--rm", "--network=none", f"--entrypoint={command[0]}", IMAGE, *command[1:]
    ).stdout.strip()


def test_size() -> None:
    assert inspect(IMAGE)["Size"] <= MAX_BYTES


def test_configuration() -> None:
    config = inspect(IMAGE)["Config"]
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    capabilities = {
        name: value for name, value in config["Labels"].items() if name.startswith("com.amazonaws.sagemaker")
    }

    assert config["Entrypoint"] == ["onnx-serve"]
    assert not config["Cmd"]
    assert config["User"] == ""
    assert capabilities == {
        "com.amazonaws.sagemaker.capabilities.accept-bind-to-port": "true",
        "com.amazonaws.sagemaker.capabilities.multi-models": "true",
    }
    assert config["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"
    assert variables["ARROW_DEFAULT_MEMORY_POOL"] == "system"
    assert not any(name.startswith(("PIP", "NVIDIA", "SSL", "REQUESTS")) for name in variables)


def test_no_build_tools_tests_or_secrets() -> None:
    """Debian's own ``ensurepip`` is part of another package, too."""
    unwanted = (
        r"find / -xdev \( -name pip -o -name 'pip-*' -o -name setuptools -o -name wheel -o -name 'gcc*'"
        r" -o -name cc -o -name ld -o -name pip.conf -o -name ca_bundle -o -path '*/numpy/tests'"
        r" -o -path '*/pyarrow/tests' -o -name '*.pxd' -o -name 'numpy*.h' \)"
        r" -not -path '/proc/*' -not -path '/usr/share/*' -not -path '/var/lib/dpkg/*' -not -path '/etc/alternatives/*'"
    )

    assert in_image("sh", "-c", f"{unwanted}; ls -A /var/lib/apt/lists /root/.cache 2>/dev/null || true") == (
        "/var/lib/apt/lists:"
    )


def test_every_import_works_and_nothing_is_compiled() -> None:
    """Python names each file that it takes code from: all of it is bytecode that was made by the build."""
    traced = docker(
        "run", "--rm", "--network=none", "--read-only", "--user=12345", "--entrypoint=python", IMAGE, "-v", "-c", IMPORTS
    ).stderr.splitlines()  # fmt: skip
    taken = [line for line in traced if line.startswith("# code object from ")]

    assert len(taken) > 300
    assert [line for line in taken if not line.endswith(".pyc'")] == []
    assert not any(line.startswith("# wrote ") for line in traced)


def test_every_library_finds_what_it_links() -> None:
    """No library that was trimmed away is missed by one that stayed."""
    linked = in_image(
        "sh", "-c", "find /opt/onnx-serve -name '*.so*' -type f -exec ldd {} + 2>&1"
    ).splitlines()

    assert sum(line.startswith("/opt/onnx-serve/") for line in linked) > 50
    assert [line for line in linked if "not found" in line] == []


def test_image_formats() -> None:
    """What Pillow decodes after it has lost its libraries for fonts and AVIF."""
    program = (
        "import io; from PIL import Image\n"
        "for name in ('PNG', 'JPEG', 'GIF', 'BMP', 'WEBP'):\n"
        "    file = io.BytesIO(); Image.new('RGB', (8, 8), 'red').save(file, name)\n"
        "    with Image.open(file) as image: print(image.format, image.convert('RGB').getpixel((4, 4))[0] > 250)"
    )

    assert in_image("python", "-c", program).splitlines() == [
        f"{name} True" for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP")
    ]


def test_locale_of_text_models() -> None:
    program = "import locale; print(locale.setlocale(locale.LC_ALL, 'en_US.UTF-8'))"

    assert in_image("python", "-c", program) == "en_US.UTF-8"


@pytest.mark.parametrize("variant", ["gpu", "gpu-cuda13"])
def test_gpu_variants_ask_the_container_runtime_for_the_gpu(variant: str) -> None:
    """The stage that the variants differ in; what they install is gigabytes."""
    tag = "onnx-serve:test-stage"
    done = build(tag, target=f"variant-must-be-cpu-gpu-or-gpu-cuda13...not-{variant}", VARIANT=variant)
    assert done.returncode == 0, done.stderr[-4000:]
    variables = inspect(tag)["Config"]["Env"]
    docker("rmi", tag, check=False)

    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(variables)


@pytest.fixture(scope="module")
def baked() -> Iterator[str]:
    tag = "onnx-serve:test-baked"
    done = build(tag, MODEL_DIR="sample_models/iris-classifier")
    assert done.returncode == 0, done.stderr[-4000:]
    yield tag
    docker("rmi", tag, check=False)


def test_baked_model_is_served(baked: str) -> None:
    with container("--user=12345:12345", image=baked) as running:
        answer = running.post((IRIS / "request.csv").read_bytes(), "text/csv", "text/csv")

    assert answer.text == (IRIS / "response.csv").read_text()


@pytest.mark.parametrize(
    ("build_args", "words"),
    [
        pytest.param({"VARIANT": "tpu"}, "variant-must-be-cpu-gpu-or-gpu-cuda13...not-tpu", id="no such variant"),
        pytest.param({"MODEL_DIR": "requirements"}, "holds no model: expected a .onnx or .ort file", id="no model"),
        pytest.param({"MODEL_DIR": "missing/folder"}, "/missing/folder", id="no such folder"),
    ],
)  # fmt: skip
def test_build_refuses(build_args: dict[str, str], words: str) -> None:
    done = build("onnx-serve:test-refused", **build_args)

    assert done.returncode != 0
    assert words in done.stdout + done.stderr


def test_documented_model_archive_is_served(tmp_path: Path) -> None:
    """The archive that docs/sagemaker.md packs, unpacked as the platform does it."""
    command = "tar -C sample_models/iris-classifier -czf model.tar.gz ."
    assert command in (REPOSITORY / "docs/sagemaker.md").read_text()
    archive, folder = tmp_path / "model.tar.gz", tmp_path / "model"
    folder.mkdir()
    subprocess.run(
        command.replace("model.tar.gz", str(archive)).split(), cwd=REPOSITORY, check=True, timeout=60
    )
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    with container(model=folder) as running:
        answer = running.post((IRIS / "request.csv").read_bytes(), "text/csv", "text/csv")

    assert answer.text == (IRIS / "response.csv").read_text()
