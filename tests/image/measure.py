"""Figures of the image: ``with_engine.sh python -m image.measure`` prints its layers and the cold start.

Cold start is the time from the moment the container's process is executed, as the engine records it, to the
first 200 of ``/ping``, asked every 5 ms.
"""

import statistics
import time
from datetime import datetime
from pathlib import Path

import requests

from image.container import IMAGE, container, docker, inspect
from serving import SAMPLES

ROUNDS = 10
PING_S = 0.005


def layers() -> list[tuple[float, str]]:
    """Megabytes and instruction of each layer that has a size, the base first."""
    history = docker(
        "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", IMAGE
    ).stdout.splitlines()
    units = {"GB": 1000, "MB": 1, "kB": 0.001, "B": 1e-6}
    found = []
    for line in reversed(history):
        size, _, instruction = line.partition("\t")
        number = size.rstrip("GMkB")
        found.append((float(number) * units[size[len(number) :]], " ".join(instruction.split())[:100]))
    return [(megabytes, instruction) for megabytes, instruction in found if megabytes]


def cold_start_s(model: Path) -> float:
    """Seconds from exec to the first good ping of one container."""
    with container("--read-only", "--tmpfs=/tmp", model=model, ready=False) as running:
        with requests.Session() as session:
            while True:
                try:
                    if session.get(f"{running.url}/ping", timeout=5).status_code == requests.codes.ok:
                        ready = time.time()
                        break
                except requests.ConnectionError:
                    assert running.state["Running"], running.log
                time.sleep(PING_S)
        # Go writes nanoseconds, Python reads microseconds.
        started = datetime.fromisoformat(running.state["StartedAt"][:26] + "+00:00")
    return ready - started.timestamp()


def main() -> None:
    """Prints the figures."""
    print(f"{IMAGE}: {inspect(IMAGE)['Size'] / 1e6:.0f} MB")
    for megabytes, instruction in layers():
        print(f"{megabytes:8.1f} MB  {instruction}")
    for model in sorted(file.parent for file in SAMPLES.glob("*/model.onnx")):
        times = [cold_start_s(model) for _ in range(ROUNDS)]
        print(
            f"{model.name}: cold start median {statistics.median(times):.2f} s, "
            f"{min(times):.2f} to {max(times):.2f} s over {ROUNDS} starts"
        )


if __name__ == "__main__":
    main()
