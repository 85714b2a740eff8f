import gzip
import os
from pathlib import Path

import pytest

from onnx_serve.batch.input_files import InputFile, find_inputs, plain_file
from onnx_serve.errors import DecodeError, SettingsError, UnsupportedMediaType


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12")


def names(found: list[InputFile]) -> list[str]:
    return [file.name for file in found]


def ignore(_count: int) -> None:
    pass


def test_a_folder_is_all_below_it_but_hidden_files_and_outputs(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.csv",
        "a.csv",
        "z/c.csv",
        ".hidden",
        "_SUCCESS",
        "_temporary/x.csv",
        ".git/x",
        "a.csv.out",
    )

    assert names(find_inputs([str(tmp_path)], tmp_path)) == ["a.csv", "b.csv", "z/c.csv"]
    # Elsewhere a name that ends with .out is a name like any other.
    assert "a.csv.out" in names(find_inputs([str(tmp_path)], tmp_path / "elsewhere"))


def test_patterns_and_files_keep_the_arguments_order(tmp_path: Path) -> None:
    touch(tmp_path, "b1.csv", "b2.csv", "a.json", "sub/deep/c.csv", "sub/deep/c.csv.out")
    found = find_inputs([f"{tmp_path}/b*.csv", f"{tmp_path}/a.json", f"{tmp_path}/**/c*"], tmp_path)

    assert names(found) == ["b1.csv", "b2.csv", "a.json", "sub/deep/c.csv"]
    assert [file.size for file in found] == [2, 2, 2, 2]


def test_files_of_one_name_in_several_folders_match_one_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "data/2023/part.csv", "data/2024/part.csv")
    monkeypatch.chdir(tmp_path)
    expected = ["2023/part.csv", "2024/part.csv"]

    assert names(find_inputs(["data/**/*.csv"], tmp_path / "out")) == expected
    assert names(find_inputs([f"{tmp_path}/data/*/part.csv"], tmp_path / "out")) == expected
    assert names(find_inputs(["*/2023/*"], tmp_path / "out")) == ["data/2023/part.csv"]


@pytest.mark.parametrize("output", ["in/out", "../work/in/out", "link/out", "in/../in/out"])
@pytest.mark.parametrize("argument", ["in", "../work/in", "link", "in/**/*"])
def test_outputs_are_known_however_their_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, argument: str
) -> None:
    touch(tmp_path, "work/in/a.csv", "work/in/out/a.csv.out")
    (tmp_path / "work" / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path / "work")

    assert names(find_inputs([argument], Path(output))) == ["a.csv"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.csv", "elsewhere/b.csv", "elsewhere/deep/c.csv")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "self").symlink_to(".")

    assert names(find_inputs([str(tmp_path / "in")], tmp_path / "out")) == [
        "a.csv",
        "link/b.csv",
        "link/deep/c.csv",
    ]


def test_a_pattern_does_not_go_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "in/deep/a.csv", "other/b.csv")
    (tmp_path / "in" / "deep" / "self").symlink_to(".")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")

    expected = ["deep/a.csv", "link/b.csv"]
    assert names(find_inputs([f"{tmp_path}/in/**/*.csv"], tmp_path / "out")) == expected


def test_a_folder_without_inputs_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "in/_SUCCESS")

    assert find_inputs([str(tmp_path / "in")], tmp_path) == [
        InputFile(tmp_path / "in", "in", problem="the folder holds no input")
    ]


def test_an_existing_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "[a].csv", "a.csv")

    assert names(find_inputs([f"{tmp_path}/[a].csv"], tmp_path / "out")) == ["[a].csv"]


def test_what_is_named_twice_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")

    assert names(find_inputs([str(tmp_path / "a.csv"), f"{tmp_path}/../{tmp_path.name}/a.csv", str(tmp_path)], tmp_path)) == ["a.csv"]  # fmt: skip


def test_two_inputs_of_one_name_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.csv", "y/a.csv")
    with pytest.raises(SettingsError, match=r"x/a\.csv and .*y/a\.csv for a\.csv\.out"):
        find_inputs([str(tmp_path / "x/a.csv"), str(tmp_path / "y/a.csv")], tmp_path)


def test_what_cannot_be_read_is_in_the_list_with_its_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere")
    found = find_inputs([str(tmp_path), f"{tmp_path}/none*", str(tmp_path / "missing.csv"), "a\0b"], tmp_path)

    problems = {file.path.name: file.problem for file in found}
    assert problems == {
        "dangling.csv": "No such file or directory",
        "pipe.csv": "expected a regular file",
        "none*": "no file matches",
        "missing.csv": "No such file or directory",
        "a\0b": "embedded null byte",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "closed/a.csv", "b.csv")
    (tmp_path / "closed").chmod(0)
    try:
        found = find_inputs([str(tmp_path)], tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert [(file.name, file.problem) for file in found] == [("b.csv", ""), ("closed", "Permission denied")]


@pytest.mark.parametrize(
    ("name", "chosen", "expected"),
    [
        ("a.csv", None, "text/csv"),
        ("a.CSV", None, "text/csv"),
        ("a.b.jsonl.gz", None, "application/jsonlines"),
        ("a.npy", None, "application/x-npy"),
        ("a.jpeg", None, "image/jpeg"),
        ("a.csv", "application/json", "application/json"),
        ("a", "text/csv", "text/csv"),
    ],
)
def test_content_type(name: str, chosen: str | None, expected: str) -> None:
    assert InputFile(Path(name), name).content_type(chosen) == expected


@pytest.mark.parametrize("name", ["a", "a.txt", "a.gz", ".gz", "csv"])
def test_a_suffix_that_says_nothing_is_an_error(name: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="--content-type"):
        InputFile(Path(name), name).content_type(None)


@pytest.mark.parametrize(
    ("name", "compression", "expected"),
    [
        ("a.csv.gz", "auto", b"data"),
        ("a.csv", "auto", None),
        ("a.csv", "gzip", b"data"),
        ("a.csv.gz", "none", None),
    ],
)
def test_gzip(tmp_path: Path, name: str, compression: str, expected: bytes | None) -> None:
    """None: the file's own bytes."""
    path = tmp_path / name
    packed = gzip.compress(b"da") + gzip.compress(b"ta")
    path.write_bytes(packed)
    counted: list[int] = []
    file = InputFile(path, name, len(packed))
    with (
        file.open(compression, counted.append) as stream,
        plain_file(stream, compressed=file.is_compressed(compression)) as (plain, length),
    ):
        data = plain.read()

    assert data == (packed if expected is None else expected)
    assert length == len(data)
    assert sum(counted) == len(packed)


@pytest.mark.parametrize(
    "data",
    [b"not gzip", gzip.compress(b"x" * 1000)[:-9], gzip.compress(b"x")[:10] + b"\xff" * 10],
    ids=["other", "cut", "garbled"],
)
def test_broken_gzip_is_a_decode_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(data)
    with (
        pytest.raises(DecodeError, match=r"^gzip: "),
        InputFile(tmp_path / "a.gz", "a.gz").open("auto", ignore) as stream,
    ):
        stream.read()


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1,2\n")

    def read_then_grow() -> None:
        with InputFile(path, "a.csv").open("auto", ignore) as stream:
            stream.read()
            with path.open("ab") as other:
                other.write(b"3,4\n")

    with pytest.raises(DecodeError, match="changed while it was read"):
        read_then_grow()


def test_the_stream_can_seek(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"0123456789")
    with (
        InputFile(path, "a").open("auto", ignore) as stream,
        plain_file(stream, compressed=False) as (plain, size),
    ):
        plain.seek(-3, os.SEEK_END)
        assert (plain.read(), size) == (b"789", 10)


def test_a_pipe_in_the_files_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with InputFile(tmp_path / "a.csv", "a.csv").open("auto", ignore) as stream:
        assert stream.read(1) == b""
