"""Finding models: which layouts mean what, and what is said of the rest."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_folders import find, touch
from onnx_serve.errors import ModelError
from onnx_serve.model_files.model_folder import ModelFolder, find_models


def described(found: ModelFolder) -> dict[str, list[str]]:
    """Paths by name, in the order of versions."""
    models: dict[str, list[str]] = {}
    for model in found.models:
        assert model.path == found.root / model.relative
        models.setdefault(model.name, []).append(model.relative)
    return models


# Layouts.

LAYOUTS: dict[str, tuple[list[str], dict[str, list[str]], str | None]] = {
    "one file of any name": (["fraud-v3.onnx"], {"fraud-v3": ["fraud-v3.onnx"]}, "fraud-v3.onnx"),
    "one ort file": (["m.ort"], {"m": ["m.ort"]}, "m.ort"),
    "suffix in capitals": (["M.ONNX"], {"M": ["M.ONNX"]}, "M.ONNX"),
    "dots in the name": (["a.b.onnx"], {"a.b": ["a.b.onnx"]}, "a.b.onnx"),
    "several": (["a.onnx", "b.onnx"], {"a": ["a.onnx"], "b": ["b.onnx"]}, None),
    "several with model.onnx": (
        ["model.onnx", "a.onnx"],
        {"a": ["a.onnx"], "model": ["model.onnx"]},
        "model.onnx",
    ),
    "folders": (
        ["a/model.onnx", "b/net.onnx"],
        {"a": ["a/model.onnx"], "b": ["b/net.onnx"]},
        None,
    ),
    "model.onnx in a folder is no default": (
        ["model/model.onnx", "b.onnx"],
        {"b": ["b.onnx"], "model": ["model/model.onnx"]},
        None,
    ),
    "versions by number": (
        ["m/2/model.onnx", "m/10/model.onnx", "m/1/net.ort", "m/config.pbtxt", "x.txt"],
        {"m": ["m/1/net.ort", "m/2/model.onnx", "m/10/model.onnx"]},
        "m/10/model.onnx",
    ),
    "a lone model with versions": (["m/1/model.onnx"], {"m": ["m/1/model.onnx"]}, "m/1/model.onnx"),
    "a lone model with versions, nested": (
        ["export/m/1/model.onnx"],
        {"m": ["m/1/model.onnx"]},
        "m/1/model.onnx",
    ),
    "nested once": (["export/net.onnx"], {"net": ["net.onnx"]}, "net.onnx"),
    "nested once, model.onnx keeps the folder's name": (
        ["m/model.onnx"],
        {"m": ["model.onnx"]},
        "model.onnx",
    ),
    "nested twice": (["a/b/net.onnx", "a/b/README"], {"net": ["net.onnx"]}, "net.onnx"),
    "nested twice, folders below": (
        ["a/b/x/model.onnx", "a/b/y/1/model.onnx"],
        {"x": ["x/model.onnx"], "y": ["y/1/model.onnx"]},
        None,
    ),
    "nested with several": (
        ["a/model.onnx", "a/b.onnx"],
        {"b": ["b.onnx"], "model": ["model.onnx"]},
        "model.onnx",
    ),
    "a lone version folder": (["1/model.onnx"], {"model": ["model.onnx"]}, "model.onnx"),
    "invisible files": (
        ["__MACOSX/._m.onnx", "._m.onnx", ".git/x.onnx", ".a.onnx", "m.onnx"],
        {"m": ["m.onnx"]},
        "m.onnx",
    ),
    "invisible beside a lone folder": (["._d", ".DS_Store", "d/m.onnx"], {"m": ["m.onnx"]}, "m.onnx"),
    "ort beside onnx": (["m.ort", "m.onnx"], {"m": ["m.onnx"]}, "m.onnx"),
    "model.onnx among others in a folder": (
        ["a/model.onnx", "a/other.onnx", "x.txt"],
        {"a": ["a/model.onnx"]},
        "a/model.onnx",
    ),
    "a folder of several files": (
        ["onnx/encoder.onnx", "onnx/decoder.onnx", "config.json"],
        {"decoder": ["onnx/decoder.onnx"], "encoder": ["onnx/encoder.onnx"]},
        None,
    ),
    "external data is no model": (["m.onnx", "m.onnx.data", "m.onnx_data"], {"m": ["m.onnx"]}, "m.onnx"),
    "user code is not looked into": (["m.onnx", "code/x.onnx"], {"m": ["m.onnx"]}, "m.onnx"),
    "a folder called like a file": (
        ["x.onnx/net.onnx", "a.txt"],
        {"x.onnx": ["x.onnx/net.onnx"]},
        "x.onnx/net.onnx",
    ),
}


@pytest.mark.parametrize(("files", "models", "default"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(files: list[str], models: dict[str, list[str]], default: str | None, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    found = find(tmp_path)
    assert described(found) == models
    assert (found.default.relative if found.default else None) == default
    assert list(found.names) == sorted(models)


def test_versions_are_found_by_number(tmp_path: Path) -> None:
    touch(tmp_path, "m/2/model.onnx", "m/10/model.onnx", "a.onnx")
    found = find(tmp_path)
    highest, second, plain = found.find("m"), found.find("m", 2), found.find("a")
    assert highest
    assert highest.version == 10
    assert second
    assert second.relative == "m/2/model.onnx"
    assert plain
    assert plain.version is None
    assert found.find("m", 3) is None
    assert found.find("a", 1) is None
    assert found.find("b") is None


def test_nesting_deeper_than_the_limit_is_not_followed(tmp_path: Path) -> None:
    """Two folders are stripped and two more searched."""
    touch(tmp_path, "a/b/c/d/m.onnx")
    with pytest.raises(ModelError, match=r'found: "c/"'):
        find(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("b", "b.onnx"), ("b.onnx", "b.onnx"), ("m", "m/2/model.onnx"), ("m/1/model.onnx", "m/1/model.onnx")],
)
def test_default_model_chooses(wanted: str, expected: str, tmp_path: Path) -> None:
    """By name or by path; before model.onnx."""
    touch(tmp_path, "model.onnx", "b.onnx", "m/1/model.onnx", "m/2/model.onnx")
    found = find(tmp_path, wanted)
    assert found.default
    assert found.default.relative == expected


def test_default_model_must_be_there(tmp_path: Path) -> None:
    touch(tmp_path, *(f"m{i:02}.onnx" for i in range(12)))
    with pytest.raises(ModelError) as caught:
        find(tmp_path, "resnet")
    assert str(caught.value) == (
        'default_model: expected one of "m00", "m01", "m02", "m03", "m04", "m05", "m06", "m07", "m08", "m09" '
        'and 2 more, got "resnet"'
    )


def test_a_lone_model_is_the_default_whatever_was_asked_for(tmp_path: Path) -> None:
    """But not silently."""
    touch(tmp_path, "m.onnx")
    found = find(tmp_path, "resnet")
    assert found.default
    assert found.ignored == ('default_model "resnet" (there is one model only)',)
    assert find(tmp_path, "m").ignored == ()


CLASHES: dict[str, tuple[list[str], str]] = {
    "file and folder": (
        ["a.onnx", "a/model.onnx"],
        'the model name "a" means two files: "a.onnx" and "a/model.onnx"',
    ),
    "file and versions": (["a.onnx", "a/1/model.onnx"], '"a.onnx" and "a/1/model.onnx"'),
    "folder and versions": (["a/model.onnx", "a/1/model.onnx", "x"], '"a/model.onnx" and "a/1/model.onnx"'),
    "same version": (["a/1/model.onnx", "a/01/model.onnx"], '"a/01/model.onnx" and "a/1/model.onnx"'),
    "suffixes": (["a.onnx", "a.ONNX"], '"a.ONNX" and "a.onnx"'),
    "file and folder of several": (["b.onnx", "d/b.onnx", "d/c.onnx"], '"b.onnx" and "d/b.onnx"'),
    "version of several files": (
        ["m/1/a.onnx", "m/1/b.onnx"],
        '"m/1/": expected one model file or model.onnx, got "a.onnx", "b.onnx"',
    ),
}


@pytest.mark.parametrize(("files", "expected"), CLASHES.values(), ids=CLASHES)
def test_a_name_that_means_two_files_is_an_error(files: list[str], expected: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ModelError) as caught:
        find(tmp_path)
    assert expected in str(caught.value)


# Beside the models.


def test_what_plays_no_part_is_told(tmp_path: Path) -> None:
    touch(
        tmp_path, "config.yaml", "code/inference.py", "a/model.onnx", "a/config.pbtxt", "a/old.onnx", "b.ort"
    )
    touch(tmp_path, "b.onnx", "c/3/readme.txt", "labels.txt", "bad\nname")
    assert sorted(find(tmp_path).ignored) == [
        '"bad\\x0aname" (no printable name)',
        "a/config.pbtxt",
        "a/old.onnx (beside model.onnx)",
        "b.ort (beside b.onnx)",
        "c/3/ (no .onnx or .ort file)",
        "code",
        "config.yaml",
    ]


def test_only_the_first_of_what_plays_no_part_is_told(tmp_path: Path) -> None:
    """One line of the log, however full the folder; what concerns the model itself comes first."""
    touch(tmp_path, "m.onnx", *(f"{i:02}/1/x.txt" for i in range(12)))
    (tmp_path / "onnx_serve.yaml").symlink_to("/dev/null")
    assert find(tmp_path, "other").ignored == (
        'default_model "other" (there is one model only)',
        "onnx_serve.yaml (no regular file of the model folder)",
        *(f"{i:02}/1/ (no .onnx or .ort file)" for i in range(8)),
        "and 4 more",
    )
    touch(tmp_path / "ten", "m.onnx", *(f"{i:02}/1/x.txt" for i in range(10)))
    assert find(tmp_path / "ten").ignored[-1] == "09/1/ (no .onnx or .ort file)"


def test_settings_and_samples(tmp_path: Path) -> None:
    """The first of the samples beside the default model, else at the root."""
    touch(tmp_path, "onnx_serve.yaml", "m/1/model.onnx", "sample.npy")
    found = find(tmp_path)
    assert found.settings_file == tmp_path / "onnx_serve.yaml"
    assert found.sample_file == tmp_path / "sample.npy"
    touch(tmp_path, "m/1/sample.csv", "m/1/sample.npz")
    assert find(tmp_path).sample_file == tmp_path / "m/1/sample.csv"


def test_settings_and_samples_of_a_nested_folder(tmp_path: Path) -> None:
    touch(tmp_path, "d/onnx_serve.yaml", "d/m.onnx", "d/sample.json")
    found = find(tmp_path)
    assert found.root == tmp_path / "d"
    assert found.settings_file == tmp_path / "d/onnx_serve.yaml"
    assert found.sample_file == tmp_path / "d/sample.json"


def test_a_folder_without_settings_and_samples(tmp_path: Path) -> None:
    touch(tmp_path, "m.onnx")
    found = find(tmp_path)
    assert found.settings_file is None
    assert found.sample_file is None


def test_settings_and_samples_outside_are_not_read(tmp_path: Path) -> None:
    """A message about a bad line would show some of it."""
    inside, outside = tmp_path / "in", tmp_path / "secret"
    touch(inside, "m.onnx")
    outside.touch()
    (inside / "onnx_serve.yaml").symlink_to(outside)
    os.mkfifo(inside / "sample.json")
    found = find(inside)
    assert found.settings_file is None
    assert found.sample_file is None
    assert found.ignored == (
        "onnx_serve.yaml (no regular file of the model folder)",
        "sample.json (no regular file of the model folder)",
    )
    assert (
        find_models(inside, default_model=None, allow_links=True).settings_file == inside / "onnx_serve.yaml"
    )


# Nothing found.

WITHOUT: dict[str, tuple[list[str], str]] = {
    "empty": ([], "is empty: expected a .onnx or .ort file there, in <name>/ or in <name>/<version>/"),
    "invisible": ([".x.onnx", "__MACOSX/"], "is empty"),
    "other files": (
        ["b.txt", "a.bin", "d/"],
        'in <name>/ or in <name>/<version>/, found: "a.bin", "b.txt", "d/"',
    ),
    "pickle": (["a.pkl", "b.txt"], '"a.pkl", "b.txt"; "a.pkl": convert the model to ONNX first'),
    "torch": (["code/x.py", "net.PT"], '; "net.PT": convert'),
    "deeper": (["m/1/model.savedmodel.pb"], '; "model.savedmodel.pb": convert'),
    "archive": (["model.tar.gz"], '; "model.tar.gz": unpack the archive'),
    "many": ([f"{i:02}.txt" for i in range(30)], '"09.txt" and 20 more'),
    "many ignored": ([f"{i:02}/1/x.txt" for i in range(12)], "09/1/ (no .onnx or .ort file), and 2 more"),
    "foreign": (["config.yaml"], 'found: "config.yaml"; ignored: config.yaml'),
    "no printable name": (["\x1b.onnx"], 'found: nothing; ignored: "\\x1b.onnx" (no printable name)'),
}


@pytest.mark.parametrize(("files", "expected"), WITHOUT.values(), ids=WITHOUT)
def test_a_folder_without_models_says_what_is_there(files: list[str], expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    touch(folder, *files)
    with pytest.raises(ModelError) as caught:
        find(folder)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(ModelError, match=r'^the model folder ".*" does not exist$'):
        find(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"is a file, expected a folder$"):
        find(tmp_path / "file")


@pytest.fixture
def no_listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder unreadable, for root too: permissions do not bind it."""
    real = os.scandir

    def forbid(folder: Path) -> None:
        def scandir(path: Path) -> Any:
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return forbid


def test_unreadable_folders(tmp_path: Path, no_listing: Callable[[Path], None]) -> None:
    """Of the model folder it is an error, of one below it a remark."""
    touch(tmp_path, "a/model.onnx", "b.onnx")
    no_listing(tmp_path / "a")
    found = find(tmp_path)
    assert found.names == ("b",)
    assert found.ignored == ("a/ (Permission denied)",)
    no_listing(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be read: Permission denied$"):
        find(tmp_path)


def test_thousands_of_models_without_opening_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing a folder, and no look at any file."""
    for i in range(2500):
        touch(tmp_path, f"m{i:04}/1/model.onnx")
    listed = []
    real = os.scandir

    def scandir(path: Path) -> Any:
        listed.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "open", None)
    found = find(tmp_path)
    assert len(found.models) == 2500
    assert found.default is None
    assert len(listed) == 1 + 2 * 2500


# Links to folders.


def test_folders_that_are_links(tmp_path: Path) -> None:
    """Followed inside the folder, and out of it only where that is allowed."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    touch(outside, "model.onnx")
    touch(inside, ".store/model.onnx", "x.txt")
    (inside / "a").symlink_to(".store")
    (inside / "b").symlink_to(outside)
    found = find(inside)
    assert described(found) == {"a": ["a/model.onnx"]}
    assert found.ignored == ("b/ (a link out of the model folder; see allow_links)",)
    allowed = find_models(inside, default_model=None, allow_links=True)
    assert allowed.names == ("a", "b")


@pytest.mark.parametrize("target", [".", "../out", ".store"])
def test_a_lone_link_is_never_stripped(target: str, tmp_path: Path) -> None:
    """The root would be elsewhere, and everything there inside it."""
    inside = tmp_path / "in"
    touch(inside, ".store/model.onnx")
    touch(tmp_path, "out/model.onnx")
    (inside / "a").symlink_to(target)
    if target == ".store":
        assert find(inside).root == inside
        assert described(find(inside)) == {"a": ["a/model.onnx"]}
        return
    with pytest.raises(ModelError, match="holds no model"):
        find(inside)
