"""The options of a batch job on a command line: those of ``CreateTransformJob``, for every command that runs one."""

import argparse

from onnx_serve.batch.data_processing import DataProcessing
from onnx_serve.batch.json_path import ROOT, JsonPath, parse_path
from onnx_serve.batch.transform_job import MAX_RETRIES, MAX_TIMEOUT_S, TransformJob
from onnx_serve.errors import SettingsError

__all__ = [
    "add_format_options",
    "add_platform_options",
    "add_record_options",
    "add_request_options",
    "chosen",
    "read_job",
]

# Options of the platform's agent, which a plain batch job does not have.
_PLATFORM = (
    "split_type",
    "strategy",
    "max_payload_mb",
    "max_concurrent",
    "assemble_with",
    "input_filter",
    "output_filter",
    "join_source",
)
_STRATEGIES = {"multi": "MULTI_RECORD", "single": "SINGLE_RECORD", None: None}
_TIMEOUT_S = 600


def add_format_options(parser: argparse._ActionsContainer, accept: str) -> None:
    """Adds what inputs and answers are.

    Args:
        parser: Or a group of one.
        accept: What is asked for by default.
    """
    parser.add_argument("--content-type", metavar="TYPE", help="of all inputs (default: by their suffixes)")
    parser.add_argument("--accept", metavar="TYPE", help=f"of the answers (default: {accept})")
    parser.add_argument("--compression", choices=("auto", "none", "gzip"), default="auto",
                        help="of the inputs (default: auto, gzip for names that end with .gz)")  # fmt: skip


def add_record_options(parser: argparse._ActionsContainer) -> None:
    """Adds what becomes of bad records, to a parser or a group of one."""
    parser.add_argument(
        "--record-errors",
        choices=("fail", "placeholder"),
        help="whether a bad record fails its file, or is answered in its place (default: the setting)",
    )


def add_request_options(parser: argparse._ActionsContainer) -> None:
    """Adds the bounds of a request over HTTP, to a parser or a group of one."""
    parser.add_argument("--timeout-s", metavar="N", type=int, default=_TIMEOUT_S,
                        help=f"of one request, 1 to {MAX_TIMEOUT_S} (default: {_TIMEOUT_S})")  # fmt: skip
    parser.add_argument("--max-retries", metavar="N", type=int, default=MAX_RETRIES,
                        help=f"of one request, 0 to {MAX_RETRIES} (default: {MAX_RETRIES})")  # fmt: skip


def add_platform_options(parser: argparse._ActionsContainer) -> None:
    """Adds how records are packed, filtered and joined, to a parser or a group of one."""
    parser.add_argument(
        "--split-type", choices=("none", "line", "recordio"), help="what ends a record (default: none)"
    )
    parser.add_argument(
        "--strategy",
        choices=("multi", "single"),
        help="records of a request (default: the container's answer)",
    )
    parser.add_argument(
        "--max-payload-mb", metavar="N", type=int, help="of a request; 0 for any size, sent in chunks"
    )
    parser.add_argument("--max-concurrent", metavar="N", type=int, help="requests at once")
    parser.add_argument(
        "--assemble-with", choices=("none", "line"), help="what ends an answer (default: none)"
    )
    parser.add_argument("--input-filter", metavar="JSONPATH", help="what of a record is sent (default: $)")
    parser.add_argument("--output-filter", metavar="JSONPATH", help="what of an answer is kept (default: $)")
    parser.add_argument(
        "--join-source", choices=("none", "input"), help="what is put before an answer (default: none)"
    )


def chosen(options: argparse.Namespace) -> list[str]:
    """The names of the platform's options that the command line has."""
    return [name for name in _PLATFORM if getattr(options, name) is not None]


def read_job(options: argparse.Namespace, *, platform: bool) -> TransformJob:
    """The job that the options describe.

    Args:
        options: Of a parser with all of this module's options.
        platform: Whether requests are made as Batch Transform makes them.

    Raises:
        SettingsError: An option is not what the platform takes.
    """
    job = TransformJob(
        content_type=options.content_type,
        accept=options.accept,
        compression=options.compression,
        platform=platform,
        split_type=options.split_type or "none",
        batch_strategy=_STRATEGIES[options.strategy],
        max_payload_mb=options.max_payload_mb,
        max_concurrent=options.max_concurrent,
        assemble_with=options.assemble_with or "none",
        processing=DataProcessing(
            _path("--input-filter", options.input_filter),
            options.join_source == "input",
            _path("--output-filter", options.output_filter),
        ),
        record_errors=getattr(options, "record_errors", None),
        timeout_s=options.timeout_s,
        max_retries=options.max_retries,
    )
    job.check()
    return job


def _path(option: str, text: str | None) -> JsonPath:
    try:
        return ROOT if text is None else parse_path(text)
    except SettingsError as ex:
        raise SettingsError(f"{option}: {ex}") from ex
