"""Whose answers nobody waits for any more, and what becomes of their runs."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from onnx_serve import model as model_module
from onnx_serve.abandonment import PATIENCE_S, Deadline, RunWatch
from onnx_serve.errors import Abandoned, DeadlineExceeded
from onnx_serve.model import SessionOptions, load_model


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Options:
    """What onnxruntime's RunOptions are here."""

    terminate: bool = False


@pytest.mark.parametrize("timeout_s", [0, 5])
def test_a_deadline(timeout_s: float) -> None:
    clock = Clock()
    deadline = Deadline(timeout_s, clock)
    clock.now += 5
    deadline.check()
    clock.now += 1
    assert deadline.passed is bool(timeout_s)
    if timeout_s:
        with pytest.raises(DeadlineExceeded, match="longer than 5 s"):
            deadline.check()


def test_a_request_is_gone_with_its_client_or_its_time() -> None:
    clock = Clock()
    assert Deadline(0, clock).gone(None) is None

    def left() -> bool:
        return clock.now == 101

    assert Deadline(0, clock).gone(left) is left
    for client, expected in ((None, [False, False, True]), (left, [False, True, True])):
        clock.now = 100
        gone = Deadline(5, clock).gone(client)
        assert gone is not None
        answers = []
        for clock.now in (100, 101, 106):
            answers.append(gone())
        assert answers == expected


def test_only_long_runs_are_looked_at() -> None:
    clock, asked = Clock(), []
    watch = RunWatch(clock)

    def gone() -> bool:
        asked.append(clock.now)
        return True

    options = Options()
    with watch.over(options, gone):
        watch.look()
        assert (asked, options.terminate) == ([], False)
        clock.now += PATIENCE_S
        watch.look()
        assert options.terminate
    watch.look()
    assert len(asked) == 1


def test_a_run_that_was_ended_is_abandoned_and_no_other() -> None:
    watch = RunWatch()
    with pytest.raises(Abandoned), watch.over(Options(terminate=True), lambda: True):
        raise RuntimeError("exiting due to terminate flag")
    with pytest.raises(RuntimeError, match="its own"), watch.over(Options(), lambda: False):
        raise RuntimeError("its own")
    with watch.over(Options(terminate=True), lambda: True):
        pass  # it had ended by itself in the meantime


def test_the_watch_sleeps_while_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends after the last run, and another comes with the next."""
    monkeypatch.setattr("onnx_serve.abandonment._LOOK_EVERY_S", 0.001)
    monkeypatch.setattr("onnx_serve.abandonment.PATIENCE_S", 0)
    watch = RunWatch()
    threads = []
    for _ in range(2):
        looked = threading.Event()

        def gone(looked: threading.Event = looked) -> bool:
            looked.set()
            return False

        with watch.over(Options(), gone):
            thread = watch._thread
            assert thread is not None
            assert looked.wait(30)
        thread.join(30)
        assert not thread.is_alive()
        threads.append(thread)
    assert threads[0] is not threads[1]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose loop has as many rounds as its input says."""
    return onnx_models.slow(tmp_path_factory.mktemp("slow") / "model.onnx")


ENDLESS = {"x": np.full((1, 4), 1e12, np.float32)}


def test_a_run_without_an_end_is_ended(slow: Path) -> None:
    model = load_model(slow, "m", SessionOptions())
    assert model.run_watched is not None
    with pytest.raises(Abandoned):
        model.run_watched(ENDLESS, lambda: True)
    feed = {"x": np.zeros((1, 4), np.float32)}
    np.testing.assert_array_equal(model.run_watched(feed, lambda: True)["y"], feed["x"])


def test_a_model_whose_first_run_does_not_end_is_served_untried(
    slow: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_module, "_TRIAL_S", 0.2)
    model = load_model(slow, "m", SessionOptions(sample=lambda _, rows: ENDLESS))
    assert model.signature.has_rows
    assert "m: the model is served untried: a run to try it did not end within 0.2 s" in caplog.text
    feed = {"x": np.zeros((2, 4), np.float32)}
    np.testing.assert_array_equal(model.run(feed)["y"], feed["x"])
