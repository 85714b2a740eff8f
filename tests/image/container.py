"""A container of the image under test, on the host's network and loopback only."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from serving import free_port

IMAGE = os.environ.get("TEST_IMAGE", "onnx-serve:cpu")
START_S = 60
# The environment of an unprivileged container that may write to nothing but the temporary directory.
LOCKED_DOWN = (
    "--read-only",
    "--user=12345:12345",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=256",
)


def docker(*arguments: str, check: bool = True, timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
    """Runs the client; fails with what it said."""
    command = [os.environ.get("DOCKER", "docker"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr[-4000:]}"
    return done


def build(tag: str, target: str | None = None, **build_args: str) -> "subprocess.CompletedProcess[str]":
    """Builds the repository's Dockerfile, or one stage of it, as ``make image`` does."""
    flags = [] if target is None else ["--target", target]
    flags += [flag for name, value in build_args.items() for flag in ("--build-arg", f"{name}={value}")]
    base = os.environ.get("BASE")
    if base:
        flags += ["--build-arg", f"BASE={base}"]
    repository = str(Path(__file__).parents[2])
    command = [
        os.environ.get("DOCKER", "docker"),
        "build",
        *os.environ.get("BUILD_FLAGS", "").split(),
        *flags,
    ]
    return subprocess.run(
        [*command, "--tag", tag, repository],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
    )


def inspect(name: str) -> dict[str, Any]:
    """What the engine knows of an image or a container."""
    described: dict[str, Any] = json.loads(docker("inspect", name).stdout)[0]
    return described


@dataclass(frozen=True)
class Container:
    """A container that was started with ``serve``."""

    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = inspect(self.name)["State"]
        return state

    @property
    def log(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def post(
        self, body: Any, content_type: str, accept: str | None = None, *, timeout_s: float = 60
    ) -> requests.Response:
        headers = {"Content-Type": content_type} | ({"Accept": accept} if accept else {})
        return requests.post(f"{self.url}/invocations", data=body, headers=headers, timeout=timeout_s)

    def get(self, path: str) -> requests.Response:
        headers = {"User-Agent": "Go-http-client/1.1"}
        return requests.get(f"{self.url}{path}", timeout=5, headers=headers)

    def exec(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return docker("exec", self.name, *command, check=check)

    def python(self, program: str) -> str:
        """What a Python program prints that runs in the container, beside the server."""
        return self.exec("python", "-c", program).stdout.strip()

    def pings(self) -> list[int]:
        """Statuses of ``/ping`` until the first 200; refused connections leave none."""
        deadline = time.monotonic() + START_S
        statuses: list[int] = []
        while 200 not in statuses:
            assert time.monotonic() < deadline, f"not ready within {START_S} s: {self.log}"
            try:
                statuses.append(self.get("/ping").status_code)
            except requests.ConnectionError:
                assert self.state["Running"], self.log
                time.sleep(0.02)
        return statuses

    def wait(self) -> int:
        """Waits for the end; gives the exit code."""
        return int(docker("wait", self.name, timeout_s=60).stdout)


@contextmanager
def container(
    *options: str,
    model: Path | None = None,
    env: Mapping[str, str] | None = None,
    image: str = IMAGE,
    arguments: Sequence[str] = ("serve",),
    port: int | None = None,
    ready: bool = True,
) -> Iterator[Container]:
    """Runs ``docker run OPTIONS IMAGE serve`` until the block ends.

    Args:
        options: Of ``docker run``.
        model: Folder to mount, read only, where SageMaker puts it.
        env: Variables of the container.
        image: What to run.
        arguments: What follows the image's name.
        port: Where it is known to listen; None tells it a free port.
        ready: Whether to wait for the first good ping.
    """
    variables = {"ONNX_SERVE_HOST": "127.0.0.1", **(env or {})}
    if port is None:
        port = free_port()
        variables["ONNX_SERVE_PORT"] = str(port)
    flags = [f"--env={name}={value}" for name, value in variables.items()]
    if model is not None:
        flags.append(f"--volume={model.resolve()}:/opt/ml/model:ro")
    if not any(option.startswith("--network") for option in options):
        flags.append("--network=host")
    name = docker("run", "--detach", *flags, *options, image, *arguments).stdout.strip()
    running = Container(name, port)
    try:
        if ready:
            running.pings()
        yield running
    finally:
        docker("rm", "--force", "--volumes", name, check=False)


def run_to_end(*options: str, arguments: Sequence[str] = ("serve",), **parts: Any) -> tuple[int, list[str]]:
    """Exit code and log lines of a container that is expected to end by itself."""
    with container(*options, arguments=arguments, ready=False, **parts) as ended:
        return ended.wait(), ended.log.splitlines()
