"""What the image's build removes from its dependencies."""

import subprocess
import sys
from pathlib import Path

TRIM = Path(__file__).parents[2] / "docker/trim.py"


def trim(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(TRIM), str(folder)], capture_output=True, text=True, check=False, timeout=60
    )


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)


def test_packages_that_are_not_there_need_no_rule(tmp_path: Path) -> None:
    """The GPU variants have other packages than the CPU's."""
    done = trim(tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_needed_stays(tmp_path: Path) -> None:
    gone = ("simdjson/simdjson.h", "simdjson/simdjson.cpp", "simdjson/csimdjson.pyx")
    kept = ("simdjson/__init__.py", "csimdjson.cpython-313-x86_64-linux-gnu.so", "other/simdjson.h")
    files(tmp_path, *gone, *kept)

    done = trim(tmp_path)

    assert done.returncode == 0, done.stderr
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == set(kept)


def test_rule_that_matches_nothing_fails_the_build(tmp_path: Path) -> None:
    files(tmp_path, "simdjson/__init__.py", "simdjson/simdjson.cpp", "simdjson/csimdjson.pyx")

    done = trim(tmp_path)

    assert done.returncode == 1
    assert "simdjson/*.h matches nothing" in done.stderr
