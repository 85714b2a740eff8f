"""Whatever becomes of the child, the parent has a calibration and says why."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from calibrations import MIB, make, make_key
from onnx_serve.calibration_files import to_json
from onnx_serve.calibration_process import CalibrationProcess, CalibrationRequest
from onnx_serve.calibration_record import Rung

REQUEST = CalibrationRequest(
    key=make_key(),
    model=Path("/models/m.onnx"),
    name="m",
    slots=2,
    memory_bytes=300 * MIB,
    sample=Path("/models/sample.json"),
    provider_options={"CPUExecutionProvider": {"a": 1}},
    outputs=("y",),
)
LOADED = replace(make(), origin="guessed", reached="loaded", reason="not yet", ladder=())
LADDER = replace(LOADED, reached="ladder", ladder=(Rung(1, 1e-3, 1e-3), Rung(2, 1e-3, 1e-3)))


def python(program: str, *records: object) -> list[str]:
    """A child that first says these records, as the real one does, and then does something else."""
    said = "".join(f"print({to_json(record)!r}, flush=True)\n" for record in records)  # type: ignore[arg-type]
    return [sys.executable, "-c", "import sys, os, time, signal\n" + said + program]


def test_the_request_survives_its_json() -> None:
    read = CalibrationRequest.from_json(REQUEST.to_json())

    assert (read.key, read.model, read.sample) == (REQUEST.key, REQUEST.model, REQUEST.sample)
    assert read.to_json() == REQUEST.to_json()
    assert CalibrationRequest.from_json(replace(REQUEST, sample=None).to_json()).sample is None


def test_what_the_child_says_last_is_the_result(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    process = CalibrationProcess(REQUEST, 30, command=python("", LOADED, LADDER, make()))

    assert process.run() == make()
    [line] = caplog.messages
    assert line.startswith("m: measured in 1.5 s")


def test_the_request_reaches_the_child_and_its_remarks_the_log(caplog: pytest.LogCaptureFixture) -> None:
    program = "import json; r = json.load(sys.stdin); print(json.dumps({'remark': 'hello ' + r['name']}))"

    CalibrationProcess(REQUEST, 30, command=python(program, make())).run()
    assert caplog.messages == ["m: calibration: hello m"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sys.exit(3)", "failed with exit status 3"),
        ("sys.exit('no such thing')", "exit status 1; it said: no such thing"),
        ("print('{garbage}')", "ended before it was done"),
        (
            "print('\\x1b[31m\\0', flush=True); os.kill(os.getpid(), 11)",
            "crashed (Segmentation fault); it said",
        ),
        ("os.kill(os.getpid(), 40)", "crashed (Real-time signal 6)"),
        ("os.kill(os.getpid(), 9)", "killed, most likely because memory ran out"),
        ("sys.stdout.buffer.write(b'x' * (3 << 20))", "wrote more than"),
        ("print('{\"remark\": ')", "ended before it was done"),
    ],
    ids=[
        "fails",
        "fails with words",
        "garbage",
        "crashes",
        "real-time signal",
        "killed",
        "floods",
        "half a remark",
    ],
)
@pytest.mark.parametrize("record", [None, LOADED, LADDER], ids=["at once", "loaded", "ladder"])
def test_an_end_that_is_none_gives_a_guess_with_its_reason(
    program: str, words: str, record: object, caplog: pytest.LogCaptureFixture
) -> None:
    result = CalibrationProcess(REQUEST, 30, command=python(program, *([record] if record else []))).run()

    assert result.origin == "guessed"
    assert result.reached == ("nothing" if record is None else record.reached)  # type: ignore[attr-defined]
    if record is None or "done" not in words:
        assert words in result.reason
    assert result.reason.isprintable()
    assert len(caplog.messages) == 1
    assert result.reason in caplog.text
    assert result.activation_bytes > 0


def test_one_that_died_of_memory_has_the_smallest_plan_and_says_how_much_there_was() -> None:
    kill = "os.kill(os.getpid(), 9)"
    unloaded, loaded, climbed = (
        CalibrationProcess(REQUEST, 30, command=python(kill, *records)).run()
        for records in ([], [LOADED], [LADDER])
    )

    assert (unloaded.fits, unloaded.reached) == (False, "nothing")
    assert "while the model was loaded, of 300 MiB" in unloaded.reason
    assert "20 MiB for the session, of 300 MiB" in loaded.reason
    assert loaded.fits
    assert (climbed.slots, climbed.block_rows, climbed.limited) == (1, 1, True)


def test_a_child_that_gave_up_itself_is_believed() -> None:
    record = replace(LOADED, reason="no made-up input runs")

    result = CalibrationProcess(REQUEST, 30, command=python("", record)).run()
    assert result.reason == "no made-up input runs"


def test_a_record_of_another_model_is_none() -> None:
    stranger = make(key=make_key(cpus=64))

    assert CalibrationProcess(REQUEST, 30, command=python("", stranger)).run().reached == "nothing"


@pytest.mark.parametrize("program", ["time.sleep(600)", "os.close(1); os.close(2); time.sleep(600)"])
def test_a_child_that_hangs_is_killed_in_time(program: str) -> None:
    started = time.monotonic()
    result = CalibrationProcess(
        REQUEST, 0.5, command=python(f"signal.signal(15, signal.SIG_IGN)\n{program}")
    ).run()

    assert "took longer than 0.5 s" in result.reason
    assert time.monotonic() - started < 20
    assert children() == []


def children() -> list[str]:
    """Processes of this one that have not been waited for."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_stop_ends_the_child_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    process = CalibrationProcess(
        REQUEST, 600, command=python(f"open({str(fifo)!r}, 'w').close(); time.sleep(600)")
    )
    results = []
    thread = threading.Thread(target=lambda: results.append(process.run()))
    thread.start()
    with fifo.open() as started:
        started.read()
    process.stop()
    thread.join(timeout=30)

    assert not thread.is_alive()
    assert results[0].reason == "stopped"


def test_what_is_stopped_before_is_not_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    process = CalibrationProcess(REQUEST, 30, command=python(f"open({str(mark)!r}, 'w')"))
    process.stop()

    assert process.run().reason == "stopped"
    assert not mark.exists()


def test_a_command_that_is_not_there_gives_a_guess() -> None:
    result = CalibrationProcess(REQUEST, 30, command=["/nonexistent/python"]).run()

    assert "cannot be started: No such file" in result.reason


def test_the_child_inherits_no_secrets_no_files_and_a_folder_that_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/some/where")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    program = (
        "import json; seen = [dict(os.environ), os.getcwd(), os.listdir('/proc/self/fd'), os.getsid(0) == os.getpid()]"
        "\nopen(os.environ['SEEN'], 'w').write(json.dumps(seen))"
    )
    seen = tmp_path / "seen"
    inheritable, other = os.pipe()
    os.set_inheritable(inheritable, True)
    try:
        CalibrationProcess(REQUEST, 30, command=python(program), variables={"SEEN": str(seen)}).run()
    finally:
        os.close(inheritable)
        os.close(other)

    environment, folder, descriptors, own_session = json.loads(seen.read_text())
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["LD_LIBRARY_PATH"] == "/some/where"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert len(descriptors) <= 4
    assert own_session
    assert not Path(folder).exists()


def test_the_parent_needs_no_onnxruntime() -> None:
    """The server imports this before its model is loaded."""
    program = "import sys, onnx_serve.calibration_process; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert not {"onnxruntime", "pyarrow", "falcon"} & set(loaded.stdout.split())
