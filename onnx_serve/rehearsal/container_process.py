"""A container for a rehearsal: an image run by docker, a command, or something that runs already.

The platform runs ``docker run IMAGE serve`` with the variables of the job, the model below ``/opt/ml/model``
read-only, and ends it with SIGTERM, then 30 seconds later SIGKILL:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx_serve.errors import SettingsError, quote
from onnx_serve.rehearsal.http_exchange import Address

__all__ = ["PORT", "ContainerProcess", "docker_container", "run_command"]

_HOST = "127.0.0.1"
PORT = 8080
STOP_S = 30.0
_DOCKER_S = 30.0
_LOG_LINES = 30
_LINE_BYTES = 400


class ContainerProcess:
    """A running container.

    Args:
        command: The process.
        address: Where it will answer.
        environment: Its variables.
        kill_command: Ends what outlives the process, or nothing.
    """

    def __init__(
        self,
        command: Sequence[str],
        address: Address,
        environment: Mapping[str, str],
        kill_command: Sequence[str] = (),
    ) -> None:
        self.address = address
        self._kill_command = kill_command
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        try:
            self._process = subprocess.Popen(  # noqa: S603  the user's own command
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as ex:
            words = getattr(ex, "strerror", None) or str(ex)
            raise SettingsError(f"cannot start {quote(command[0])}: {words}") from ex
        self._reader = threading.Thread(target=self._read_log, name="onnx-serve-container-log", daemon=True)
        self._reader.start()

    @property
    def exit_code(self) -> int | None:
        """How it ended (minus a signal's number), or None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> list[str]:
        """The last 30 lines that it has written; complete once it has been stopped."""
        return list(self._log)

    def stop(self, seconds: float = STOP_S) -> bool:
        """Ends it as the platform does; false if it had to be killed.

        Only the process itself gets SIGTERM, as a container's first process does; its children are killed with
        it in the end.
        """
        ended = True
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                ended = False
        if not ended and self._kill_command:
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(self._kill_command, capture_output=True, check=False, timeout=_DOCKER_S)  # noqa: S603
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        return ended

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while line := stream.readline(_LINE_BYTES):
                text = line.decode("utf-8", "replace").rstrip()
                self._log.append("".join(c if c.isprintable() or c == "\t" else "?" for c in text))


@contextmanager
def run_command(
    command: Sequence[str], port: int, environment: Mapping[str, str], inherited: Mapping[str, str]
) -> Iterator[ContainerProcess]:
    """Runs a command in the place of a container, and ends it with the block.

    Args:
        command: With its arguments.
        port: Where it will listen; one other than 8080 is told to it as ``SAGEMAKER_BIND_TO_PORT``.
        environment: Variables of the job.
        inherited: The caller's own, without those of the platform.

    Raises:
        SettingsError: It cannot be started, or something listens there already.
    """
    _check_free(port)
    own = {name: text for name, text in inherited.items() if not name.startswith("SAGEMAKER_")}
    container = ContainerProcess(command, Address(_HOST, port), {**own, **_bound_to(port), **environment})
    try:
        yield container
    finally:
        container.stop()


@contextmanager
def docker_container(
    image: str,
    model_dir: Path | None,
    environment: Mapping[str, str],
    inherited: Mapping[str, str],
    options: Sequence[str] = (),
    host_port: int | None = None,
) -> Iterator[ContainerProcess]:
    """Runs ``docker run IMAGE serve``, and ends the container with the block.

    Its port 8080 is published at a free port of the loopback interface.

    Args:
        image: Its name.
        model_dir: Mounted as ``/opt/ml/model``, read-only; None for what the image holds.
        environment: Variables of the job.
        inherited: The caller's own, for docker itself.
        options: More of ``docker run``'s.
        host_port: Where it will listen in the host's own network; None for a network that docker makes.

    Raises:
        SettingsError: There is no docker, or it has no daemon, or something listens at the port already.
    """
    docker = _docker()
    name = f"onnx-serve-rehearsal-{secrets.token_hex(4)}"
    command = [docker, "run", "--rm", "--name", name]
    if host_port is None:
        port = _free_port()
        command += ["--publish", f"{_HOST}:{port}:{PORT}"]
    else:
        port = host_port
        _check_free(port)
        command += ["--network", "host"]
        environment = {**_bound_to(port), **environment}
    for key, text in environment.items():
        command += ["--env", f"{key}={text}"]
    if model_dir is not None:
        command += ["--volume", f"{model_dir.resolve()}:/opt/ml/model:ro"]
    container = ContainerProcess(
        [*command, *options, image, "serve"], Address(_HOST, port), inherited, [docker, "kill", name]
    )
    try:
        yield container
    finally:
        container.stop()


def _docker() -> str:
    """The path of docker's client, whose daemon answers."""
    docker = shutil.which("docker")
    if docker is None:
        raise SettingsError("--image: docker is not installed; use --command or --url")
    try:
        asked = subprocess.run(  # noqa: S603  docker's own path
            [docker, "version", "--format", "{{.Server.Version}}"],
            capture_output=True, text=True, check=False, timeout=_DOCKER_S,
        )  # fmt: skip
        problem = asked.stderr.strip().partition("\n")[0] if asked.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"docker does not answer within {_DOCKER_S:g} s"
    if problem:
        raise SettingsError(f"--image: docker cannot be used ({problem}); use --command or --url")
    return docker


def _bound_to(port: int) -> dict[str, str]:
    """Tells a container to listen elsewhere than at 8080."""
    return {} if port == PORT else {"SAGEMAKER_BIND_TO_PORT": str(port)}


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        # As servers do, so that connections of an earlier one that still linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as ex:
            words = getattr(ex, "strerror", None) or str(ex)
            raise SettingsError(
                f"--port {port}: {words}; choose another, which is told to the command as SAGEMAKER_BIND_TO_PORT"
            ) from ex


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
