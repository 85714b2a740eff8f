"""Whether the execution parameters are true: memory as predicted, throughput as good as any choice, quickly found.

    python -m bench.parameters ZOO [--models a,b] [--parts memory] [--memory 512m --cpus 1] [--quick] [--rounds 10]
                               [--memory-seconds 120] [--json FILE]

ZOO is a folder of bench.model_zoo; what it lacks is built. Every model is served as a transform job would, by a
fresh process with SAGEMAKER_BATCH=true and no other setting, and asked for its answer. Then

memory       a job follows the answer with payloads as large as it allows, in every format that suits the model, each
             on a server of its own: the predicted over the actual peak of the process; the worst format counts.
throughput   every distinct choice of concurrency, payload and strategy is screened once; the answer and the best
             three then take turns, ten times: the median of the ratios and its 95 % interval, for the answer and for
             one request at a time. These servers share a cache of calibrations; nothing else differs.
calibration  what the server says it took.

container    with --memory and --cpus every server runs in a control group of its own, and a job of a hundred payloads
             of 6 MB must end without a kill and without a 5xx, or the server must have refused to start with exit
             code 3.

--parts names some of memory, throughput and container; without a limit there is no container.
The client shares the processors with the server.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.agent import JobFailedError
from bench.control_group import ControlGroup, ControlGroupError
from bench.memory_job import ContainerJob, MemoryJob, container_job, memory_job
from bench.model_zoo import ZooModel, build, chosen
from bench.parameter_sweep import Bench, Sweep, sweep
from bench.payloads import MIB, Source, draw
from bench.server_process import StartFailedError

_PARTS = frozenset({"memory", "throughput", "container"})
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_HEADER = (
    "model", "answer", "worst format", "predicted MiB", "actual MiB", "predicted / actual", "by format",
    "answer / best of sweep", "best of sweep", "one at a time / best", "records/s", "calibration s", "start s", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        parts: Of ``_PARTS``.
        limits: Bytes of memory and processors of every server's container; None for the machine's.
        rounds: Interleaved pairs.
        seconds: Of one measurement of throughput.
        memory_s: Of a job for memory at most.
        container_s: Of the job of a hundred payloads at most.
        cache: Folder of calibrations for the servers whose throughput is measured.
    """

    parts: frozenset[str]
    limits: tuple[int, float] | None
    rounds: int
    seconds: float
    memory_s: float
    container_s: float
    cache: str


@dataclass(frozen=True)
class Proof:
    """Everything found out about a model. What could not be had is None, and ``notes`` tell why."""

    model: str
    jobs: list[MemoryJob]
    sweep: Sweep | None
    container: ContainerJob | None
    notes: list[str]

    @property
    def worst(self) -> MemoryJob | None:
        """The job whose memory was predicted worst: of the lowest ratio, or the largest where nothing was predicted."""
        ran = [job for job in self.jobs if job.actual_bytes]
        if not ran:
            return None
        under = [job for job in ran if job.ratio is not None]
        if not under:
            return max(ran, key=lambda job: job.actual_bytes)
        return min(under, key=lambda job: job.ratio or 0)


def prove(name: str, model: ZooModel, model_dir: Path, plan: Plan) -> Proof:
    """Measures one model; whatever fails is a note, never the end of the run."""
    sources = [draw(model, content_type) for content_type in model.formats]
    notes: list[str] = []
    jobs = _memory_jobs(model_dir, sources, plan, notes) if "memory" in plan.parts else []
    found = _sweep(name, model_dir, sources[0], plan, notes) if "throughput" in plan.parts else None
    container = None
    if plan.limits and "container" in plan.parts:
        container = container_job(model_dir, sources, plan.limits, plan.container_s)
        notes.append(f"100 x 6 MB {container.verdict}: {container.detail}")
    return Proof(name, jobs, found, container, notes)


def _memory_jobs(model_dir: Path, sources: list[Source], plan: Plan, notes: list[str]) -> list[MemoryJob]:
    jobs: list[MemoryJob] = []
    try:
        for source in sources:
            job = memory_job(model_dir, source, plan.limits, plan.memory_s)
            jobs.append(job)
            if job.failure:
                notes.append(f"{source.content_type}: {job.failure}")
            elif not job.finished:
                notes.append(f"{source.content_type}: cut after {plan.memory_s:.0f} s")
    except StartFailedError as ex:
        notes.append(f"not started, exit {ex.code}: {ex}")
    return jobs


def _sweep(name: str, model_dir: Path, source: Source, plan: Plan, notes: list[str]) -> Sweep | None:
    variables = {"SAGEMAKER_BATCH": "true", "ONNX_SERVE_CALIBRATION_CACHE": f"{plan.cache}/{name}"}
    bench = Bench(model_dir, source, variables, plan.limits, plan.rounds, plan.seconds)
    try:
        return sweep(bench)
    except (JobFailedError, StartFailedError) as ex:
        notes.append(f"sweep: {ex}")
        return None


def row(proof: Proof) -> list[str]:
    """A line of the table."""
    worst, found = proof.worst, proof.sweep
    cells = [proof.model, *(["n/a"] * (len(_HEADER) - 2)), "; ".join(proof.notes)]
    if found:
        cells[1] = str(found.own)
    if worst:
        answer = worst.answer
        cells[1:3] = [str(answer), worst.content_type]
        cells[4] = f"{worst.actual_bytes / MIB:.0f}"
        cells[6] = ", ".join(_short(job) for job in proof.jobs)
        if worst.predicted_bytes is not None and worst.ratio is not None:
            cells[3], cells[5] = f"{worst.predicted_bytes / MIB:.0f}", f"{worst.ratio:.2f}"
        if "calibration_seconds" in answer.terms:
            slowest = max(job.answer.terms["calibration_seconds"] for job in proof.jobs)
            cells[11] = f"{slowest:.1f} ({answer.terms.get('calibration_origin', 'n/a')})"
        cells[12] = f"{max(job.start_s for job in proof.jobs):.1f}"
    if found:
        cells[10] = f"{found.own_rate:,.0f}"
        if found.contenders:
            choice, interval = found.worst
            cells[7:10] = [str(interval), str(choice), str(found.worst_forced)]
    return cells


def _short(job: MemoryJob) -> str:
    name = job.content_type.partition("/")[2].removeprefix("x-")
    return f"{name} {job.actual_bytes / MIB:.0f} MiB" + (f" ({job.ratio:.2f})" if job.ratio else "")


def document(proof: Proof) -> dict[str, Any]:
    """The same and everything it came from, for --json."""
    found = proof.sweep
    return {
        "model": proof.model,
        "memory": [{**asdict(job), "ratio": job.ratio} for job in proof.jobs],
        "sweep": found
        and {
            "own": str(found.own),
            "records": found.records,
            "own_rate": found.own_rate,
            "rates": {str(choice): rate for choice, rate in found.rates.items()},
            "own_over_contenders": {str(choice): found.contenders[choice]._asdict() for choice in found.contenders},
            "one_at_a_time_over_contenders": {str(choice): found.forced[choice]._asdict() for choice in found.forced},
        },
        "container": proof.container and asdict(proof.container),
        "notes": proof.notes,
    }  # fmt: skip


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f'expected a size like 512m, got "{text}"')
    return int(found[1]) * _UNITS[found[2]]


def _parts(text: str) -> frozenset[str]:
    parts = frozenset(text.split(","))
    if not parts <= _PARTS:
        raise argparse.ArgumentTypeError(f'expected some of {", ".join(sorted(_PARTS))}, got "{text}"')
    return parts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures whether the execution parameters are true.")
    parser.add_argument("zoo", type=Path, help="folder of the models; those it lacks are built")
    parser.add_argument("--models", help="some of them, separated by commas (default: all)")
    parser.add_argument("--parts", type=_parts, default=_PARTS, help="some of them (default: all)")
    parser.add_argument(
        "--memory", type=_size, help="of every server's container, e.g. 512m (default: no limit)"
    )
    parser.add_argument("--cpus", type=float, help="of every server's container (default: no limit)")
    parser.add_argument("--quick", action="store_true", help="shorter measurements, for a first look")
    parser.add_argument("--rounds", type=int, default=10, help="interleaved pairs (default: 10)")
    parser.add_argument(
        "--memory-seconds", type=float, help="of a job for memory at most (default: 120, or 15 with --quick)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    return parser.parse_args()


def main() -> None:
    """Measures the models and prints the table."""
    options = _options()
    limits = None
    if options.memory or options.cpus:
        limits = (options.memory or 1 << 60, options.cpus or float(os.cpu_count() or 1))
        try:
            with ControlGroup(*limits):
                pass
        except ControlGroupError as ex:
            raise SystemExit(f"--memory and --cpus are not possible: {ex}") from ex
    proofs: list[Proof] = []
    with tempfile.TemporaryDirectory() as cache:
        quick = options.quick
        plan = Plan(
            options.parts,
            limits,
            options.rounds,
            1 if quick else 3,
            options.memory_seconds or (15 if quick else 120),
            30 if quick else 300,
            cache,
        )
        print(_line(_HEADER), _line(["---"] * len(_HEADER)), sep="\n", flush=True)
        for name, model in chosen(options.models).items():
            begin = time.perf_counter()
            proof = prove(name, model, build(options.zoo, name), plan)
            proofs.append(proof)
            print(_line(row(proof)), flush=True)
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
            if options.json:
                options.json.write_text(json.dumps([document(done) for done in proofs], indent=1))


if __name__ == "__main__":
    main()
