"""Servers of the main environment, whose Python ``SERVER_PYTHON`` names, for the clients of this one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest

from clients.packaged_models import model_path
from clients.sagemaker_endpoint import Endpoint
from serving import ServerProcess, free_port

Serve: TypeAlias = Callable[[Path], ServerProcess]


class ServePackaged(Protocol):
    """Serves a package's model, with settings of its own where there are some."""

    def __call__(self, name: str, settings: Mapping[str, Any] | None = None) -> ServerProcess: ...


# boto3 wants to know who asks and where; nothing here asks AWS.
os.environ.setdefault("AWS_DEFAULT_REGION", "eu-west-1")
os.environ.setdefault("AWS_ACCESS_KEY_ID", "none")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "none")


@contextmanager
def running(model_dir: Path, log_file: Path) -> Iterator[ServerProcess]:
    """``onnx-serve serve`` of a folder, as a process of the main environment."""
    port = free_port()
    command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "onnx_serve", "serve",
               "--model-dir", str(model_dir), "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = ServerProcess(port, process, log_file)
    try:
        server.wait_until_ready()
        yield server
    finally:
        process.terminate()
        process.wait(40)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Gives the server of a model folder, started when it is first asked for and kept for the module's tests."""
    servers: dict[Path, ServerProcess] = {}
    with ExitStack() as stack:

        def server(model_dir: Path) -> ServerProcess:
            if model_dir not in servers:
                log_file = tmp_path_factory.mktemp("server") / "log"
                servers[model_dir] = stack.enter_context(running(model_dir, log_file))
            return servers[model_dir]

        yield server


@pytest.fixture(scope="module")
def serve_packaged(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> ServePackaged:
    """Gives the server of a model of ``packaged_models``, copied to a folder of its own."""
    root = tmp_path_factory.mktemp("models")

    def server(name: str, settings: Mapping[str, Any] | None = None) -> ServerProcess:
        folder = root / f"{name}{' with settings' if settings else ''}"
        if not folder.exists():
            path = model_path(name)
            folder.mkdir()
            shutil.copy(path, folder / path.name)
            if settings:
                # JSON is YAML.
                (folder / "onnx_serve.yaml").write_text(json.dumps(settings))
        return serve(folder)

    return server


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Endpoint]:
    """An endpoint service without endpoints: ``endpoint.names["iris"] = server.url`` adds one."""
    with Endpoint().serving() as service:
        yield service
