"""The command line: ``onnx-serve serve``, ``onnx-serve inspect`` and ``onnx-serve transform``.

Exit codes: 0 done; 2 a wrong argument or setting; 3 no servable model; 1 anything unforeseen.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from onnx_serve import __version__, allocator, ray_command
from onnx_serve.batch import transform_command
from onnx_serve.body_budget import BodyBudget
from onnx_serve.errors import ModelError, ServeError, SettingsError
from onnx_serve.machine import descriptor_limit, read_machine
from onnx_serve.rehearsal import rehearsal_command
from onnx_serve.settings import Settings, load_settings

__all__ = ["main"]

_log = logging.getLogger("onnx_serve")

_EPILOG = """\
examples:
  onnx-serve inspect --model-dir sample_models/iris-classifier
  onnx-serve serve --model-dir sample_models/iris-classifier --host 127.0.0.1
  curl -H 'Content-Type: text/csv' --data-binary '5.1,3.5,1.4,0.2' http://127.0.0.1:8080/invocations

Every setting is described in config.yaml; ONNX_SERVE_<SETTING> in the environment overrides the file.
"""
# Beside all bodies: what one request takes to be decoded, run and answered in blocks, and the libraries that the
# first one of a format brings in.
_RESERVE_BYTES = 64 << 20
_EXIT_USAGE = 2
_EXIT_MODEL = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["convert"], ["package"]):
        from converters import command  # noqa: PLC0415  the server never loads a converter

        return command.main(words)
    parser = _parser()
    options = parser.parse_args(words)
    flags = {
        name: value for name in ("model_dir", "host", "port") if (value := getattr(options, name)) is not None
    }
    try:
        if options.command == "rehearse":
            return rehearsal_command.run(options, os.environ)
        job = transform_command.job_environment(options) if options.command == "transform" else {}
        settings = load_settings(config_file=options.config, environ={**os.environ, **job}, flags=flags)
        _start_logging(settings, quiet=getattr(options, "quiet", False))
        for warning in settings.warnings:
            _log.warning("%s", warning)
        if options.command == "transform" and options.engine == "ray":
            return ray_command.run(options, settings, os.environ)
        if options.command == "transform":
            return transform_command.run(options, settings)
        return _inspect(settings) if options.command == "inspect" else _serve(settings)
    except SettingsError as ex:
        return _fail(ex, _EXIT_USAGE)
    except ModelError as ex:
        return _fail(ex, _EXIT_MODEL)


def _fail(ex: ServeError, code: int) -> int:
    print(f"onnx-serve: {ex}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onnx-serve",
        description="Serve any ONNX model the way Amazon SageMaker expects a container to.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onnx-serve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve the model over HTTP until SIGTERM",
        description="Serve the model over HTTP: GET /ping, POST /invocations, GET /execution-parameters.",
    )
    # Their arguments are read by converters/command.py; here they only appear in the help.
    commands.add_parser("convert", help="make a model folder from a trained model")
    commands.add_parser("package", help="make model.tar.gz of a model folder")
    inspect = commands.add_parser(
        "inspect",
        help="show what would be served, and how",
        description="Load the model and show its inputs, outputs, settings and execution parameters.",
    )
    transform = transform_command.add_parser(commands)
    ray_command.add_options(transform)
    for command in (serve, inspect, transform):
        command.add_argument(
            "--model-dir", metavar="DIR", help="folder with the model (default: /opt/ml/model)"
        )
        command.add_argument(
            "--config", metavar="FILE", type=Path, help="settings file (default: the packaged config.yaml)"
        )
    rehearsal_command.add_parser(commands)
    serve.add_argument("--host", metavar="H", help="address to listen on (default: 0.0.0.0)")
    serve.add_argument(
        "--port", metavar="N", type=int, help="port to listen on (default: $SAGEMAKER_BIND_TO_PORT or 8080)"
    )
    inspect.set_defaults(host=None, port=None)
    return parser


def _start_logging(settings: Settings, *, quiet: bool) -> None:
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.basicConfig(
        level=max(level, logging.WARNING) if quiet else level,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )


def _serve(settings: Settings) -> int:
    """Opens the socket at once, so that pings are answered, and loads the model beside it."""
    machine = read_machine()
    allocator.tune(machine.memory_limit_bytes)
    from onnx_serve.app import create_app  # noqa: PLC0415  NumPy and pyarrow come after the allocator is tuned
    from onnx_serve.brief_requests import BriefRequests  # noqa: PLC0415
    from onnx_serve.repository import Repository  # noqa: PLC0415
    from onnx_serve.server import Server, default_connection_limit  # noqa: PLC0415

    repository = Repository(settings, machine, whole_process=True)
    limit = settings.connection_limit
    server = Server(
        create_app(repository),
        host=settings.host,
        port=settings.port,
        threads=repository.admission.threads,
        body_memory_bytes=settings.body_memory_bytes,
        hard_body_limit_bytes=_hard_limit(repository.body_limit_bytes),
        connection_limit=limit if isinstance(limit, int) else default_connection_limit(descriptor_limit()),
        drain_timeout_s=settings.drain_timeout_ms / 1000,
        body_budget=BodyBudget(
            machine.memory_available_bytes,
            max(machine.memory_limit_bytes // 20, _RESERVE_BYTES),
            spool_is_memory=machine.temp_dir_is_memory(),
        ),
        estimate=BriefRequests(repository).estimate,
    )
    server.handle_signals()
    failures: list[BaseException] = []

    def load() -> None:
        try:
            repository.load()
            _log.info("ready on http://%s:%d: %s", settings.host, server.port,
                      repository.execution_parameters().to_json())  # fmt: skip
            repository.measure()
        except BaseException as ex:  # noqa: BLE001  carried to the main thread, which ends the process
            failures.append(ex)
            server.stop()

    threading.Thread(target=load, name="onnx-serve-load", daemon=True).start()
    finished = server.run()
    if failures:
        raise failures[0]
    repository.close()
    return 0 if finished else 1


def _hard_limit(limit: int) -> int:
    """Where the connection is cut instead of answered: far beyond the limit that gets a 413."""
    return max(4 * limit, 1 << 31) if limit else 1 << 62


def _inspect(settings: Settings) -> int:
    from onnx_serve.inspection import report  # noqa: PLC0415  loads onnxruntime

    print(report(settings))
    return 0
