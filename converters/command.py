"""``onnx-serve convert`` and ``onnx-serve package``: arguments, progress, exit codes.

Exit codes: 0 written; 2 a wrong argument, artifact or sample; 3 refused, as no model answers like the original;
1 anything unforeseen. Nothing is written unless it is 0.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from converters.artifact import EXTRAS, FRAMEWORKS, detect
from converters.errors import ConversionError, ConversionRefused, MissingExtra
from onnx_serve.errors import ModelError, ServeError, quote

__all__ = ["convert", "main"]

_EXIT_USAGE, _EXIT_REFUSED = 2, 3
_EPILOG = """\
Reading pickle, joblib and TorchScript files runs code that is in them. With --trust-pickle they are read in a
process of its own, with an empty environment, limits and a timeout, and without network where the kernel allows
that. This is not a sandbox: the code can still read and write what you can. Trust only what you made or had checked.

examples:
  onnx-serve convert model.ubj --output model/
  onnx-serve convert pipeline.joblib --output model/ --trust-pickle --sample rows.csv
  onnx-serve package model/ -o model.tar.gz
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the two commands and returns its exit code.

    Args:
        arguments: The command's name first; those of the process by default.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "package":
            return _package(options)
        return _convert(options)
    except ConversionRefused as ex:
        return _fail(ex, _EXIT_REFUSED)
    except ModelError as ex:
        return _fail(ex, _EXIT_REFUSED)
    except ServeError as ex:
        return _fail(ex, _EXIT_USAGE)


def convert(
    artifact: Path,
    output: Path,
    *,
    force: bool = False,
    timeout_s: float = 1800,
    steps: Sequence[str] = (),
    progress: Any = None,
    **request: Any,
) -> Any:
    """Converts a file into a model folder, as the command does: read apart, proven here.

    Args:
        artifact: The file.
        output: The folder to make.
        force: Whether an existing folder is replaced.
        timeout_s: Seconds that reading and converting may take.
        steps: Of ``reductions.STEPS``, in order.
        progress: Told what is being done, in a few words.
        request: Further fields of ``conversion.Request``.

    Returns:
        The ``parity.Report``.

    Raises:
        ConversionError: The artifact, sample or output is not what was expected.
        ConversionRefused: No model answers as the original does.
    """
    kind = detect(artifact)
    if find_spec("onnx") is None:
        raise MissingExtra(EXTRAS[kind.framework or "sklearn"], "onnx")
    # These load onnxruntime; the help and wrong arguments do not wait for it.
    from converters import artifact as artifacts  # noqa: PLC0415
    from converters import conversion as conversions  # noqa: PLC0415
    from converters.frameworks import check_request  # noqa: PLC0415
    from converters.isolation import convert_apart  # noqa: PLC0415
    from converters.parity import Tolerances  # noqa: PLC0415
    from converters.samples import check_sample  # noqa: PLC0415

    progress = progress or conversions.say_nothing
    artifacts.check_output(output, force=force)
    sample = request.pop("sample", None)
    # The child has another working directory.
    wanted = conversions.Request(
        artifact=str(artifact.resolve()), sample=str(Path(sample).resolve()) if sample else None, **request
    )
    check_request(wanted)
    _check_steps(steps, wanted.target)
    # What is wrong with an argument shows before a conversion that may take minutes.
    conversions.override(Tolerances(), wanted.tolerances)
    if sample:
        check_sample(Path(sample))
    if not 0 < timeout_s < float("inf"):
        raise ConversionError(f"--timeout: expected seconds above 0, got {timeout_s:g}")
    with (
        convert_apart(wanted, timeout_s=timeout_s, progress=progress) as conversion,
        tempfile.TemporaryDirectory(prefix="onnx-serve-weights-") as weights,
    ):
        for note in conversion.notes:
            progress(f"note: {note}")
        reduced, figures = _reduce(conversion, steps, wanted.tolerances, progress, Path(weights))
        progress("proving it again, and writing")
        return conversions.finish(
            reduced, output, source_sha256=artifacts.hash_file(artifact), target=wanted.target, force=force,
            figures=figures,
        )  # fmt: skip


def _check_steps(steps: Sequence[str], target: str) -> None:
    """Refuses to optimise for another onnxruntime than the one that does it.

    Raises:
        ConversionError: See above.
    """
    from converters.targets import find_target, installed_target  # noqa: PLC0415  loads onnxruntime

    wanted, installed = find_target(target), installed_target()
    if "optimize" in steps and wanted.version != installed.version:
        raise ConversionError(
            f"--optimize: the graph would be that of onnxruntime {installed.version}, with operators of its own, and "
            f"{wanted.version} is to serve it: convert where onnxruntime {wanted.version} is installed"
        )


def _reduce(
    conversion: Any, steps: Sequence[str], tolerances: Any, progress: Any, folder: Path
) -> tuple[Any, dict[str, Any]]:
    """The conversion after the optional steps, and their figures; large weights stay in a file in the folder."""
    if not steps:
        return conversion, {}
    from converters.external_data import join_weights, split_weights  # noqa: PLC0415
    from converters.reductions import apply  # noqa: PLC0415

    whole = replace(conversion, model=join_weights(conversion.model, conversion.external), external={})
    reduced, figures = apply(whole, steps, tolerances, progress)
    model, external = split_weights(reduced.model, folder)
    return replace(reduced, model=model, external=external), figures


def _convert(options: argparse.Namespace) -> int:
    report = convert(
        options.artifact, options.output, force=options.force, timeout_s=options.timeout,
        steps=[step for step in ("optimize", "float16", "quantize") if getattr(options, step)],
        progress=lambda text: print(f"onnx-serve: {text}", file=sys.stderr, flush=True),
        framework=options.framework, sample=options.sample, trust_pickle=options.trust_pickle,
        options=_framework_options(options),
        tolerances=_numbers(_pairs(options.tolerance, "--tolerance")), target=options.target_onnxruntime,
    )  # fmt: skip
    for line in report.lines():
        print(line)
    print(f"written: {options.output}")
    return 0


def _package(options: argparse.Namespace) -> int:
    from converters.package import package  # noqa: PLC0415  loads onnxruntime

    figures = package(options.folder, options.output, force=options.force)
    print(f"written: {options.output} ({figures})")
    return 0


def _fail(ex: ServeError, code: int) -> int:
    print(f"onnx-serve: {ex}", file=sys.stderr)
    return code


def _framework_options(options: argparse.Namespace) -> dict[str, str]:
    """``--option``, with ``--dynamic`` as one of them.

    Raises:
        ConversionError: One is no pair, or both name dimensions.
    """
    pairs = _pairs(options.option, "--option")
    if not options.dynamic:
        return pairs
    if "dynamic" in pairs:
        raise ConversionError("--dynamic: the dimensions are named by --option dynamic= too")
    return pairs | {"dynamic": ",".join(options.dynamic)}


def _pairs(words: Sequence[str], flag: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConversionError(f"{flag}: expected key=value, got {quote(word)}")
        pairs[key] = value
    return pairs


def _numbers(pairs: dict[str, str]) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in pairs.items()}
    except ValueError:
        raise ConversionError("--tolerance: expected key=number") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onnx-serve", description="Make model folders from trained models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert_parser = commands.add_parser(
        "convert",
        help="make a model folder from a trained model",
        description="Convert a trained model to ONNX, prove that both answer the same, and write a model folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = convert_parser.add_argument
    add("artifact", metavar="ARTIFACT", type=Path, help="the trained model's file")
    add("--output", "-o", metavar="DIR", type=Path, required=True, help="the folder to make")
    add(
        "--framework", default="auto", choices=("auto", *FRAMEWORKS), help="default: told by the file's bytes"
    )
    add("--sample", metavar="FILE", help="rows to prove it on: .csv, .jsonl, .json, .parquet, .npy or .npz")
    add(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of the framework, see docs/converters.md",
    )
    add(
        "--dynamic",
        metavar="INPUT:AXIS=NAME",
        action="append",
        default=[],
        help="torch: a free dimension, such as x:0=batch; if any are named, none are inferred",
    )
    add("--tolerance", metavar="KEY=NUMBER", action="append", default=[], help="rtol, atol, ties or rows")
    add(
        "--target-onnxruntime",
        metavar="X.Y",
        default="installed",
        help="the onnxruntime that will serve, if it is another than the one installed here",
    )
    add("--trust-pickle", action="store_true", help="read files that run code (see below)")
    add(
        "--timeout", metavar="S", type=float, default=1800.0, help="seconds for reading and converting (1800)"
    )
    add("--force", action="store_true", help="replace an existing folder")
    add("--optimize", action="store_true", help="store the graph as onnxruntime optimises it offline")
    add("--float16", action="store_true", help="compute in half precision")
    add("--quantize", choices=("dynamic",), help="8-bit weights; rows then depend on the rows beside them")
    package_parser = commands.add_parser(
        "package",
        help="make model.tar.gz of a model folder",
        description="Pack a model folder flat, without links, always to the same bytes, and load it from there.",
    )
    package_parser.add_argument("folder", metavar="DIR", type=Path, help="the model folder")
    package_parser.add_argument(
        "--output", "-o", metavar="FILE", type=Path, required=True, help="model.tar.gz"
    )
    package_parser.add_argument("--force", action="store_true", help="replace an existing file")
    return parser
