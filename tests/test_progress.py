import io

import pytest

from onnx_serve.batch.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_gets_a_bar_that_is_redrawn() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, 4, 1000, clock=clock)
    progress.add(read_bytes=100)
    assert stream.getvalue() == ""
    clock.now += 10
    progress.add(read_bytes=150, rows=50_000, files=1)
    progress.line("a line that stays")
    progress.close()

    assert stream.getvalue() == (
        "\r\x1b[K[##--------] 25%, 1/4 files, 50,000 rows, 5,000 rows/s, 0:30 left"
        "\r\x1b[Ka line that stays\n\r\x1b[K"
    )


def test_a_terminals_line_is_never_broken() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, 10**9, 1000, clock=clock)
    clock.now += 1e7
    progress.add(read_bytes=1, rows=10**12)

    assert len(stream.getvalue()) == len("\r\x1b[K") + 79


def test_elsewhere_it_is_a_plain_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 2, 1000, clock=clock)
    for _ in range(10):
        clock.now += 10
        progress.add(read_bytes=50, rows=10)
    progress.close()

    assert stream.getvalue().splitlines() == [
        "15%, 0/2 files, 30 rows, 1 rows/s, 2:50 left",
        "30%, 0/2 files, 60 rows, 1 rows/s, 2:20 left",
        "45%, 0/2 files, 90 rows, 1 rows/s, 1:50 left",
    ]


def test_quiet_shows_lines_only() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, 2, 1000, clock=clock, quiet=True)
    clock.now += 100
    progress.add(rows=1)
    progress.line("failed")
    progress.close()

    assert stream.getvalue() == "failed\n"


def test_bytes_read_twice_are_not_more_than_all() -> None:
    """An NPZ's directory is read first and passed again."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 1, 10, clock=clock)
    clock.now += 60
    progress.add(read_bytes=30)

    assert stream.getvalue().startswith("100%, 0/1 files, 0 rows, 0 rows/s, 0:00 left")


def test_before_the_first_byte_no_time_is_promised() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 1, 10, clock=clock)
    clock.now += 60
    progress.add()

    assert "time left unknown" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (90_000, "25:00:00")]
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
