"""``onnx-serve transform --engine ray``: the options that it adds, the run, its exit code."""

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any

from onnx_serve.batch.command_process import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Terminated,
    print_out,
    printable,
    sigterm_raises,
)
from onnx_serve.batch.input_files import find_inputs
from onnx_serve.batch.job_options import chosen
from onnx_serve.errors import ModelError, ServeError, SettingsError, quote
from onnx_serve.settings import Settings

__all__ = ["add_options", "run"]

EXIT_DONE, EXIT_FAILED, EXIT_BAD_RECORDS = 0, 1, 4
_VARIABLE = "ONNX_SERVE_"
# What Ray Data does in its own way: it reads and cuts the files, and writes Parquet.
_REFUSED = {
    "url": None,
    "overwrite": False,
    "content_type": None,
    "accept": None,
    "compression": "auto",
    "config": None,
}
_TOLD = re.compile(r"onnx_serve\.errors\.\w+: (.{1,1000})")
# An exception of an actor arrives within others; no chain is longer than this.
_MAX_CAUSES = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of the engine, and Ray's options, to the command's."""
    ray = parser.add_argument_group(
        "on many machines",
        "Ray Data reads Parquet, CSV, JSON lines or NPY files and writes a folder of Parquet files",
    )
    ray.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: local)")
    ray.add_argument(
        "--ray-address", metavar="ADDRESS", help="of the cluster (default: $RAY_ADDRESS, else started here)"
    )
    ray.add_argument(
        "--actors", metavar="N", type=int, help="sessions at once (default: as many as the cluster holds)"
    )
    ray.add_argument(
        "--cpus-per-actor", metavar="N", type=int, help="and so its slots (default: its share of a machine)"
    )
    ray.add_argument(
        "--gpus-per-actor", metavar="N", type=float,
        help="with any it runs on CUDA (default: 1 where the cluster has GPUs, else 0)",
    )  # fmt: skip
    ray.add_argument(
        "--keep", metavar="COLUMN", action="append", default=[], help="input column to be written too"
    )


def run(options: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    """Runs the job on Ray.

    Args:
        options: Of the command's parser.
        settings: For the model folder, and whether CSV files have a header.
        environ: Its ``ONNX_SERVE_*`` variables are the actors' settings.

    Returns:
        The exit code.

    Raises:
        SettingsError: An argument is wrong, or Ray is not installed or not there.
    """
    _check(options)
    files = find_inputs(options.inputs, options.output)
    for file in files:
        if file.problem:
            raise SettingsError(printable(f"{file.path}: {file.problem}"))
    from onnx_serve import ray as engine  # noqa: PLC0415  an extra

    engine.connect(options.ray_address)
    own = {
        name.removeprefix(_VARIABLE).lower(): text
        for name, text in environ.items()
        if name.startswith(_VARIABLE) and name not in {f"{_VARIABLE}CONFIG", f"{_VARIABLE}MODEL_DIR"}
    }
    own["record_errors"] = settings.record_errors
    try:
        # Ray has set a handler of its own when it was connected.
        with sigterm_raises(Terminated):
            written = engine.transform_files(
                [file.path for file in files],
                options.output,
                settings.model_dir,
                header=settings.csv_header == "present",
                concurrency=options.actors,
                num_cpus=options.cpus_per_actor,
                num_gpus=options.gpus_per_actor,
                keep=options.keep,
                settings=own,
            )
    except KeyboardInterrupt:
        return _stopped(EXIT_INTERRUPTED)
    except Terminated:
        return _stopped(EXIT_TERMINATED)
    except (ModelError, SettingsError):
        raise
    except Exception as ex:  # noqa: BLE001  Ray's errors have no base class without Ray
        sys.stderr.write(f"onnx-serve: {_cause(ex)}\n")
        return EXIT_FAILED
    bad = f", {written.bad_records:,} bad records" if settings.record_errors == "placeholder" else ""
    print_out(f"{len(files)} files: {written.files} files written; {written.rows:,} rows{bad}\n")
    return EXIT_BAD_RECORDS if written.bad_records else EXIT_DONE


def _stopped(code: int) -> int:
    sys.stderr.write("onnx-serve: stopped; nothing was written\n")
    return code


def _check(options: argparse.Namespace) -> None:
    for name, default in _REFUSED.items():
        if getattr(options, name, default) != default:
            raise _not_with_ray(name)
    for name in chosen(options):
        raise _not_with_ray(name)
    for name, least in (("actors", 1), ("cpus_per_actor", 1), ("gpus_per_actor", 0)):
        value: Any = getattr(options, name)
        if value is not None and value < least:
            raise SettingsError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")


def _not_with_ray(name: str) -> SettingsError:
    return SettingsError(f"--{name.replace('_', '-')}: not with --engine ray")


def _cause(ex: BaseException) -> str:
    """What the server would have said, found among the errors that Ray wraps around it."""
    found: BaseException | None = ex
    for _ in range(_MAX_CAUSES):
        if found is None or isinstance(found, ServeError):
            break
        found = getattr(found, "cause", None) or found.__cause__
    if isinstance(found, ServeError):
        return str(found)
    # Some errors of Ray carry another one's traceback as text only.
    told = _TOLD.findall(str(ex))
    if told:
        return str(told[-1])
    lines = [line.strip() for line in str(ex).splitlines() if line.strip()]
    return quote(lines[-1] if lines else type(ex).__name__)
