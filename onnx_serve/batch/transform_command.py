"""The command ``onnx-serve transform``: its arguments, the run, what it prints, its exit code."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_serve import allocator
from onnx_serve.batch.command_process import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Terminated,
    print_out,
    sigterm_raises,
)
from onnx_serve.batch.input_files import InputFile, find_inputs
from onnx_serve.batch.job_options import (
    add_format_options,
    add_platform_options,
    add_record_options,
    add_request_options,
    chosen,
    read_job,
)
from onnx_serve.batch.job_record import JobRecord, job_digest
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.errors import ModelError, ServeError, SettingsError
from onnx_serve.machine import read_machine
from onnx_serve.settings import Settings

if TYPE_CHECKING:
    from onnx_serve.batch.request_plan import Plan, Target
    from onnx_serve.batch.transform import FileResult

__all__ = ["add_parser", "job_environment", "run"]

EXIT_DONE, EXIT_FAILED, EXIT_BAD_RECORDS = 0, 1, 4

_EPILOG = """\
examples:
  onnx-serve transform data/*.csv --output predictions --model-dir sample_models/iris-classifier
  onnx-serve transform data --output predictions --url http://127.0.0.1:8080
  onnx-serve transform data --output predictions --split-type line --accept text/csv \\
      --assemble-with line --input-filter '$[1:]' --join-source input --output-filter '$[0,-1]'

Exit codes: 0 every input is done; 1 some failed, or the server cannot be reached; 2 a wrong argument or
setting, or another run writes to the folder; 3 no servable model; 4 every input is done, and bad records were
answered by placeholders; 130 and 143 stopped by a signal. The same command again does what is left.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Adds the command to the program's."""
    parser = commands.add_parser(
        "transform",
        help="run a batch job over files",
        description="Answer every record of the input files: one output file an input, NAME.out, in the same order.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="a file, a folder, or a pattern (quoted)")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder of the outputs")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the outputs of finished inputs and do them again"
    )
    parser.add_argument("--url", help="send requests to a running server instead of loading the model here")
    add_format_options(parser, accept="the inputs', if it can be")
    add_request_options(parser.add_argument_group("with --url"))
    add_record_options(parser)
    parser.add_argument("--quiet", action="store_true", help="show failures and the summary only")
    add_platform_options(
        parser.add_argument_group(
            "as SageMaker's Batch Transform", "any of these makes requests the way the platform makes them"
        )
    )
    parser.set_defaults(host=None, port=None)
    return parser


def job_environment(options: argparse.Namespace) -> dict[str, str]:
    """The variables that the platform would set for a job of these options, and the setting that is one of them.

    Raises:
        SettingsError: An option is not what the platform takes.
    """
    job = _job(options)
    own = {"ONNX_SERVE_RECORD_ERRORS": job.record_errors} if job.record_errors else {}
    return {**job.environment(), **own}


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Runs the command.

    Args:
        options: Of ``add_parser``'s parser.
        settings: With what ``job_environment`` says.

    Returns:
        The exit code.

    Raises:
        SettingsError: An argument is wrong, or another run writes to the output folder.
        ModelError: There is no servable model.
    """
    job = _job(options)
    if options.url is not None and options.model_dir is not None:
        raise SettingsError("--url and --model-dir: expected one of them, got both")
    summary = _Summary()
    try:
        with sigterm_raises(Terminated):
            return _run(options, job, settings, summary)
    except KeyboardInterrupt:
        return summary.stopped(EXIT_INTERRUPTED)
    except Terminated:
        return summary.stopped(EXIT_TERMINATED)


def _run(options: argparse.Namespace, job: TransformJob, settings: Settings, summary: "_Summary") -> int:
    """Runs the job unless it is stopped; the summary gets what was done by then."""
    output = OutputFolder(options.output)
    files = find_inputs(options.inputs, options.output)
    summary.files = len(files)
    with output.lock():
        left = files
        if not options.overwrite:
            left = [file for file in files if not output.is_done(file.name, file.path)]
        summary.finished = len(files) - len(left)
        record, digest = JobRecord(output.path), job_digest(job, options.url, settings)
        bad_before: dict[str, int] = {}
        if summary.finished:
            record.check(digest)
            bad_before = record.bad_records({file.name for file in files} - {file.name for file in left})
            summary.bad_records = sum(bad_before.values())
        progress = Progress(sys.stderr, len(left), sum(file.size for file in left), quiet=options.quiet)
        try:
            with closing(progress):
                for result in _results(
                    left,
                    output,
                    job,
                    options.url,
                    settings,
                    progress,
                    lambda: record.write(digest, bad_before),
                ):
                    summary.add(result)
                    if result.bad_records:
                        record.add(result.name, result.bad_records)
                    if problem := result.problem:
                        progress.line(f"onnx-serve: {result.name}: {problem}")
        except (SettingsError, ModelError):
            raise
        except OSError as ex:
            raise SettingsError(f"--output {output.path}: {ex.strerror or ex}") from ex
        except ServeError as ex:
            progress.line(f"onnx-serve: {ex}")
            return EXIT_FAILED
    summary.show()
    return summary.exit_code


class _Summary:
    """What became of all inputs."""

    def __init__(self) -> None:
        self.files = self.finished = self.done = self.failed = self.bad_records = 0
        self._rows = self._read_bytes = self._written_bytes = 0
        self._begin = time.monotonic()

    def add(self, result: "FileResult") -> None:
        """Counts one."""
        if result.error:
            self.failed += 1
            return
        self.done += 1
        self.bad_records += result.bad_records
        self._rows += result.rows
        self._read_bytes += result.read_bytes
        self._written_bytes += result.written_bytes

    def text(self) -> str:
        """One line."""
        seconds = time.monotonic() - self._begin
        bad = f"{self.bad_records:,} bad records, " if self.bad_records else ""
        return (
            f"{self.files} files: {self.done} done, {self.finished} finished before, {self.failed} failed; "
            f"{self._rows:,} rows, {bad}{self._read_bytes:,} bytes in, {self._written_bytes:,} bytes out, "
            f"{seconds:.1f} s, {self._rows / max(seconds, 1e-9):,.0f} rows/s"
        )

    @property
    def exit_code(self) -> int:
        """Of a job that was not stopped."""
        if self.failed:
            return EXIT_FAILED
        return EXIT_BAD_RECORDS if self.bad_records else EXIT_DONE

    def show(self) -> None:
        """Prints it."""
        print_out(f"{self.text()}\n")

    def stopped(self, code: int) -> int:
        """Prints what was done before a signal came."""
        self.show()
        sys.stderr.write("onnx-serve: stopped; the same command again does what is left\n")
        return code


def _results(
    files: list[InputFile],
    output: OutputFolder,
    job: TransformJob,
    url: str | None,
    settings: Settings,
    progress: Progress,
    begin: Callable[[], None],
) -> "Iterator[FileResult]":
    from onnx_serve.batch.transform import FileResult, transform  # noqa: PLC0415  NumPy comes with it

    if all(file.problem for file in files):
        # No model is loaded for nothing.
        yield from (FileResult(file.name, "failed", error=file.problem) for file in files)
        return
    target, plan = _target(job, url, settings, progress)
    with closing(target), closing(transform(files, output, target, plan, progress)) as results:
        # What is to be done again is gone before it is said whose the outputs are.
        for file in files:
            output.remove(file.name)
        begin()
        yield from results


def _job(options: argparse.Namespace) -> TransformJob:
    return read_job(options, platform=bool(chosen(options)))


def _target(
    job: TransformJob, url: str | None, settings: Settings, progress: Progress
) -> "tuple[Target, Plan]":
    """What answers the requests, ready, and how they are made."""
    if url is not None:
        from onnx_serve.batch.container_client import Container  # noqa: PLC0415  NumPy comes with it

        container = Container(url, job.timeout_s, job.max_retries)
        container.check()
        return container, _plan(job, container)
    machine = read_machine()
    allocator.tune(machine.memory_limit_bytes)
    from onnx_serve.batch.local_model import LocalModel  # noqa: PLC0415  NumPy and pyarrow come after the allocator is tuned
    from onnx_serve.repository import Repository  # noqa: PLC0415

    repository = Repository(settings, machine)
    repository.load()
    model = LocalModel(repository, lambda rows: progress.add(rows=rows))
    # One request decodes while the slots run.
    return model, _plan(job, model, model.slots + 1)


def _plan(job: TransformJob, target: "Target", files_at_once: int = 0) -> "Plan":
    from onnx_serve.batch.request_plan import Plan  # noqa: PLC0415

    if job.platform:
        return Plan.of_platform(job, target.execution_parameters())
    if files_at_once:
        return Plan.whole_files(job, files_at_once)
    return Plan.of_server(job, target.execution_parameters())
