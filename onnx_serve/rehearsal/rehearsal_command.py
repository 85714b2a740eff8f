"""The command ``onnx-serve rehearse``: its arguments, the run, the report, its exit code."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_serve.batch.command_process import EXIT_INTERRUPTED, print_out, printable, sigterm_raises
from onnx_serve.batch.input_files import InputFile, find_inputs
from onnx_serve.batch.job_options import (
    add_format_options,
    add_platform_options,
    add_request_options,
    read_job,
)
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.errors import SettingsError, quote

if TYPE_CHECKING:
    from onnx_serve.batch.request_plan import Plan
    from onnx_serve.execution_parameters import ExecutionParameters
    from onnx_serve.rehearsal.container_process import ContainerProcess
    from onnx_serve.rehearsal.http_exchange import Address
    from onnx_serve.rehearsal.rehearsal import Job
    from onnx_serve.rehearsal.rehearsal_findings import Findings
    from onnx_serve.rehearsal.rehearsal_report import Report, Settled

__all__ = ["add_parser", "run"]

EXIT_PASSED, EXIT_FAILED = 0, 1
_READY_S = 1800
_PORT = 8080
_MAX_VARIABLES = 16
_MAX_VARIABLE_CHARS = 10240
_EPILOG = """\
examples:
  onnx-serve rehearse --image my-image:1 --model-dir model --input data --split-type line
  onnx-serve rehearse --command 'onnx-serve serve --model-dir sample_models/iris-classifier' \\
      --input data.csv --split-type line --accept text/csv
  onnx-serve rehearse --url http://127.0.0.1:8080 --input data.csv --format json

Exit codes: 0 the job would have succeeded; 1 it would have failed, or its output would have been wrong; 2 a wrong
argument, or docker cannot be used; 130 stopped by a signal. docs/rehearsal.md has every rule and its source.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the program's."""
    parser = commands.add_parser(
        "rehearse",
        help="play Batch Transform's agent against a container, and report what would have failed",
        description="Run a transform job against any container that keeps SageMaker's contract, as the platform would.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_container_options(parser)
    _add_job_options(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, help="also write the outputs there")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    parser.add_argument("--report", metavar="FILE", type=Path, help="also write the report as JSON there")
    parser.add_argument("--no-trials", action="store_true",
                        help="only the job: do not try order and concurrency afterwards")  # fmt: skip
    parser.set_defaults(host=None, port=None, config=None)


def _add_container_options(parser: argparse.ArgumentParser) -> None:
    container = parser.add_mutually_exclusive_group(required=True)
    container.add_argument("--image", help="run it with docker run IMAGE serve")
    container.add_argument("--command", dest="container_command", metavar="COMMAND",
                           help="run it in the place of a container (one quoted argument)")  # fmt: skip
    container.add_argument("--url", help="of a container that runs already: http://HOST:PORT")
    parser.add_argument(
        "--model-dir", metavar="DIR", type=Path, help="with --image: mounted as /opt/ml/model"
    )
    parser.add_argument("--host-network", action="store_true",
                        help="with --image: in this machine's own network, for a docker without another")  # fmt: skip
    parser.add_argument("--container-port", metavar="N", type=int, default=_PORT,
                        help=f"with --command or --host-network: where it will listen (default: {_PORT})")  # fmt: skip
    parser.add_argument(
        "--env", metavar="NAME=VALUE", action="append", default=[], help="the job's Environment"
    )
    parser.add_argument("--ready-timeout-s", metavar="N", type=int, default=_READY_S,
                        help=f"for the first good ping (default: {_READY_S})")  # fmt: skip


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    job = parser.add_argument_group("the job", "as in CreateTransformJob")
    job.add_argument("--input", metavar="INPUT", dest="inputs", nargs="+", required=True,
                     help="files, folders, or patterns (quoted)")  # fmt: skip
    add_format_options(job, accept="none is asked for")
    add_platform_options(job)
    add_request_options(job)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs the command.

    Args:
        options: Of ``add_parser``'s parser.
        environ: The process's environment, for the container's command and for docker.

    Returns:
        The exit code.

    Raises:
        SettingsError: An argument is wrong, or the container cannot be started.
    """
    job = _job(options)
    if options.report is not None and options.report.is_dir():
        raise SettingsError(f"--report: expected a file, got the folder {quote(options.report)}")
    output = OutputFolder(options.output) if options.output is not None else None
    try:
        with sigterm_raises(KeyboardInterrupt), output.lock() if output is not None else nullcontext():
            files = find_inputs(options.inputs, options.output or Path(os.devnull))
            report = _rehearse(options, job, files, output, environ)
    except KeyboardInterrupt:
        sys.stderr.write("onnx-serve: stopped\n")
        return EXIT_INTERRUPTED
    return _show(report, options)


def _rehearse(
    options: argparse.Namespace,
    job: TransformJob,
    files: list[InputFile],
    output: OutputFolder | None,
    environ: Mapping[str, str],
) -> "Report":
    # NumPy comes with these.
    from onnx_serve.rehearsal import container_process as containers  # noqa: PLC0415
    from onnx_serve.rehearsal.http_exchange import parse_url  # noqa: PLC0415
    from onnx_serve.rehearsal.rehearsal_findings import Findings  # noqa: PLC0415
    from onnx_serve.rehearsal.rehearsal_report import Report  # noqa: PLC0415

    findings = Findings()
    if options.url is not None:
        report = Report(options.url, job)
        _play(_Stage(parse_url(options.url), lambda: None, findings, report), options, job, files, output)
        report.findings = findings.all
        return report
    environment = {**_variables(options.env), **job.environment()}
    if options.image is not None:
        report = Report(f"docker run {options.image} serve", job)
        running = containers.docker_container(
            options.image, options.model_dir, environment, environ,
            host_port=options.container_port if options.host_network else None,
        )  # fmt: skip
    else:
        report = Report(options.container_command, job)
        running = containers.run_command(
            _words(options.container_command), options.container_port, environment, environ
        )
    with running as container:
        stage = _Stage(container.address, lambda: container.exit_code, findings, report)
        _play(stage, options, job, files, output)
        _stop(container, stage)
    report.findings = findings.all
    return report


def _stop(container: "ContainerProcess", stage: "_Stage") -> None:
    """Ends the container as the platform does, and keeps the end of its log."""
    if not container.stop():
        stage.findings.add("ignores SIGTERM", "the end of the job")
    stage.report.log = container.log


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where a rehearsal takes place.

    Attributes:
        address: Of the container.
        exit_code: How it has ended, or None.
        findings: Of the rehearsal.
        report: To be filled.
    """

    address: "Address"
    exit_code: Callable[[], int | None]
    findings: "Findings"
    report: "Report"


def _play(
    stage: _Stage,
    options: argparse.Namespace,
    job: TransformJob,
    files: list[InputFile],
    output: OutputFolder | None,
) -> None:
    """The whole dialogue: until ready, the job, the trials."""
    from onnx_serve.batch.request_plan import Plan  # noqa: PLC0415
    from onnx_serve.rehearsal import rehearsal_startup as startup  # noqa: PLC0415  NumPy comes with it
    from onnx_serve.rehearsal.rehearsal import Job  # noqa: PLC0415

    report = stage.report
    report.ready_s = startup.wait_until_ready(
        stage.address, stage.findings, stage.exit_code, options.ready_timeout_s, _tell
    )
    if report.ready_s is None:
        return
    answered = startup.ask_parameters(stage.address, stage.findings)
    plan = Plan.of_platform(job, answered)
    report.settled = _settled(job, answered, plan)
    rehearsal = Job(job, plan, stage.address, stage.findings, stage.exit_code, output)
    _tell(f"sending {len(files)} files: {', '.join(report.settled.lines())}")
    with startup.Pulse(stage.address, stage.findings) as pulse:
        report.totals = rehearsal.run(files)
    report.pings, report.slowest_ping_s = pulse.count, pulse.slowest_s
    if not options.no_trials and not report.totals.stopped:
        _try(stage, rehearsal, job, plan)


def _try(stage: _Stage, rehearsal: "Job", job: TransformJob, plan: "Plan") -> None:
    from onnx_serve.rehearsal import rehearsal_trials as trials  # noqa: PLC0415  NumPy comes with it
    from onnx_serve.rehearsal.http_exchange import Client  # noqa: PLC0415

    def make_client() -> Client:
        return Client(stage.address, 256 << 20)

    body, media_type = rehearsal.largest
    headers = {"Content-Type": media_type, **({"Accept": job.accept} if job.accept else {})}
    client = make_client()
    report = stage.report
    if rehearsal.sample is not None:
        report.compared = trials.try_order(client, rehearsal.sample, stage.findings)
    elif plan.single and job.split_type == "line" and body:
        report.takes_several = trials.takes_several(client, body, body, headers)
    client.close()
    if body and plan.max_bytes:
        most = max(100 // max(plan.max_bytes >> 20, 1), 1)
        report.rates = trials.find_concurrency(make_client, body, headers, most)


def _settled(job: TransformJob, answered: "ExecutionParameters | None", plan: "Plan") -> "Settled":
    from onnx_serve.rehearsal.rehearsal_report import Settled  # noqa: PLC0415

    chosen = (bool(job.max_concurrent), job.batch_strategy is not None, job.max_payload_mb is not None)
    other = "default" if answered is None else "container"
    sources = tuple("job" if own else other for own in chosen)
    return Settled(
        plan.concurrent, job.resolve(answered)[1], plan.max_bytes >> 20, (sources[0], sources[1], sources[2])
    )


def _show(report: "Report", options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415  only here

    document = json.dumps(report.to_json(), indent=2) + "\n"
    print_out(report.to_text() if options.format == "text" else document)
    if options.report is not None:
        try:
            options.report.write_text(document, encoding="utf-8")
        except OSError as ex:
            raise SettingsError(f"--report {quote(options.report)}: {ex.strerror or ex}") from ex
    return EXIT_PASSED if report.passed else EXIT_FAILED


def _job(options: argparse.Namespace) -> TransformJob:
    if options.ready_timeout_s < 1:
        raise SettingsError(f"--ready-timeout-s: expected 1 or more, got {options.ready_timeout_s}")
    return read_job(options, platform=True)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as ex:
        raise SettingsError(f"--command: {ex}") from ex
    if not words:
        raise SettingsError("--command: expected a command, got nothing")
    return words


def _variables(texts: list[str]) -> dict[str, str]:
    """The job's Environment, within the bounds of ``CreateTransformJob``."""
    if len(texts) > _MAX_VARIABLES:
        raise SettingsError(f"--env: expected at most {_MAX_VARIABLES} variables, got {len(texts)}")
    variables = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or len(value) > _MAX_VARIABLE_CHARS:
            raise SettingsError(
                f"--env: expected NAME=VALUE of at most {_MAX_VARIABLE_CHARS} characters, got {quote(text)}"
            )
        variables[name] = value
    return variables


def _tell(line: str) -> None:
    sys.stderr.write(f"onnx-serve: {printable(line)}\n")
