import errno
import fcntl
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_serve.batch.output_folder import OutputFile, OutputFolder
from onnx_serve.errors import SettingsError

LOCK = ".onnx-serve-transform.lock"
# Takes the lock, says so, and waits to be killed.
HOLDER = """
import sys
from pathlib import Path
from onnx_serve.batch.output_folder import OutputFolder
with OutputFolder(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_an_output_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "sub" / "a.csv.out")
    output.append(b"1\n")
    output.append(io.BytesIO(b"2\n3"))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [".a.csv.out.partial"]
    output.end_line()
    output.end_line()
    output.commit()
    output.discard()

    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.csv.out"]
    assert (tmp_path / "sub" / "a.csv.out").read_bytes() == b"1\n2\n3\n"
    assert output.length == 6


def test_an_empty_output_needs_no_line_end(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "a.out")
    output.append(b"")
    output.end_line()
    output.commit()

    assert (tmp_path / "a.out").read_bytes() == b""


def test_discard_leaves_the_former_output(tmp_path: Path) -> None:
    (tmp_path / "a.out").write_bytes(b"old")
    output = OutputFile(tmp_path / "a.out")
    output.append(b"new")
    output.discard()

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.out": b"old"}


def test_what_a_killed_run_has_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.out.partial").write_bytes(b"half of a much longer file")
    output = OutputFile(tmp_path / "a.out")
    output.append(b"1\n")
    output.commit()

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.out": b"1\n"}


def test_done_is_an_output_not_older_than_its_input(tmp_path: Path) -> None:
    folder, source = OutputFolder(tmp_path), tmp_path / "a"
    assert not folder.is_done("a", source)
    source.touch()
    assert not folder.is_done("a", source)
    folder.place("a").touch()
    os.utime(source, ns=(0, folder.place("a").stat().st_mtime_ns))
    assert folder.is_done("a", source)
    os.utime(source, ns=(0, folder.place("a").stat().st_mtime_ns + 1))
    assert not folder.is_done("a", source)


def test_a_lock_keeps_other_runs_out_and_goes_away(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "made" / "here")
    with folder.lock():
        with (
            pytest.raises(SettingsError, match=f'another run writes there \\(process "{os.getpid()} on '),
            OutputFolder(folder.path).lock(),
        ):
            pass
        assert (folder.path / LOCK).exists()
    assert list(folder.path.iterdir()) == []
    with folder.lock():
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(SettingsError, match=f'"{holder.pid} on '), OutputFolder(tmp_path).lock():
            pass
        holder.kill()
        holder.wait()
    assert (tmp_path / LOCK).exists()
    with OutputFolder(tmp_path).lock():
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} on ")


def test_a_folder_that_cannot_be_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--output .*file"), OutputFolder(tmp_path / "file").lock():
        pass
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="--output"), OutputFolder(tmp_path).lock():
        pass


def test_a_disk_without_locks_is_a_settings_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SettingsError, match="No locks available"), OutputFolder(tmp_path).lock():
        pass


def test_a_lock_removed_between_opening_and_locking_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former run's last act is to remove the file that this one has just opened."""
    opened: list[int] = []
    real = os.open

    def open_then_remove(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real(path, flags, mode)
        if not opened:
            path.unlink()
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", open_then_remove)
    with OutputFolder(tmp_path).lock():
        assert len(opened) == 2
        assert (tmp_path / LOCK).read_text()
