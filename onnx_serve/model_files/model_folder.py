"""What a model folder holds.

Folders are read, files never: ``model_check`` must pass a file before onnxruntime opens it. The layouts,
after one or two lone leading folders (archives nest) are stripped::

    <name>.onnx   <name>/model.onnx   <name>/<any>.onnx   <name>/<version>/model.onnx

The last is Triton's; versions are whole numbers and the highest is served unless another is asked for:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html
A folder of several files, none called ``model``, names them as the root does. A stripped folder that holds
nothing but ``model.onnx`` gives it its own name, which is the one it would have beside other models.
Wherever ``.onnx`` stands, ``.ort`` does too, in any case. Names with a leading dot and ``__MACOSX`` are not seen.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnx_serve.errors import ModelError, quote
from onnx_serve.model_files.folder_listing import FolderListing

__all__ = ["ModelFile", "ModelFolder", "find_models"]

_SUFFIXES = (".onnx", ".ort")  # the preferred one first
_EXPECTED = "expected a .onnx or .ort file there, in <name>/ or in <name>/<version>/"
_SETTINGS = "onnx_serve.yaml"
_USUAL_STEM = "model"
_SAMPLES = tuple(f"sample.{suffix}" for suffix in ("json", "csv", "jsonl", "npy", "npz"))
_VERSION = re.compile(r"[0-9]{1,18}")
_MAX_STRIPPED = 2
_SHOWN = 10

# What other servers read from a model folder, and this one does not.
_FOREIGN = frozenset(
    {
        "code",
        "config.pbtxt",
        "config.properties",
        "config.yaml",
        "config.yml",
        "inference.py",
        "MLmodel",
        "model-settings.json",
        "requirements.txt",
        "serving.properties",
        "settings.json",
    }
)
_ADVICE = (
    (
        re.compile(
            r".*\.(pt|pth|pkl|pickle|joblib|skops|h5|keras|safetensors|tflite|pb|bst|ubj|cbm)", re.IGNORECASE
        ),
        "convert the model to ONNX first",
    ),
    (
        re.compile(r".*\.(tar|tgz|tar\.gz|zip)", re.IGNORECASE),
        "unpack the archive",
    ),
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file by its place in the folder; nothing of it has been read.

    Attributes:
        name: What requests call the model.
        path: The file.
        relative: The same from the folder's root, with ``/``; for messages.
        version: The number of its version folder, or None.
    """

    name: str
    path: Path
    relative: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model folder holds.

    Attributes:
        root: The folder, after lone leading folders are stripped.
        models: At least one, by name, then version.
        default: What ``/invocations`` uses; None when there are several and none is meant.
        ignored: What is there and plays no part although one might think so, each with its reason if that
            is not plain; the first ten, then ``and N more``. For one line in the log.
        settings_file: The folder's ``onnx_serve.yaml``, or None.
        sample_file: A sample request (``sample.json``, ``.csv``, ``.jsonl``, ``.npy`` or ``.npz``, the
            first of these) beside the default model, else at the root, or None.
    """

    root: Path
    models: tuple[ModelFile, ...]
    default: ModelFile | None
    ignored: tuple[str, ...] = ()
    settings_file: Path | None = None
    sample_file: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models, each once, in order."""
        return tuple(dict.fromkeys(model.name for model in self.models))

    def find(self, name: str, version: int | None = None) -> ModelFile | None:
        """The model of a name, in its highest version or the one asked for, or None."""
        found = [model for model in self.models if model.name == name]
        if version is not None:
            found = [model for model in found if model.version == version]
        return found[-1] if found else None


def find_models(folder: Path, *, default_model: str | None, allow_links: bool = False) -> ModelFolder:
    """Finds the models of a folder.

    Where ``a.onnx`` and ``a.ort`` lie beside each other, the first is meant: the second is made from it,
    and only of the first can be said what it needs before it is loaded.

    Args:
        folder: The model folder.
        default_model: The name of the model that ``/invocations`` uses if there are several; its path from
            the root also serves.
        allow_links: Whether folders that are links out of ``folder`` are looked into.

    Raises:
        ModelError: No folder, no model, a name that means two files, or no model called ``default_model``.
    """
    search = _Search(folder, allow_links=allow_links)
    search.run()
    if not search.models:
        raise search.nothing_found()
    root = search.root
    models = tuple(sorted(search.models.values(), key=lambda model: (model.name, model.version or 0)))
    found = ModelFolder(root, models, default=None)
    default = _default(found, default_model)
    remarks = search.ignored
    found_before = len(remarks)
    if default_model and default and not _is_called(default, default_model):
        remarks.append(f"default_model {quote(default_model)} (there is one model only)")
    places = dict.fromkeys([default.path.parent, root] if default else [root])
    settings_file = search.listing.first_plain([root / _SETTINGS])
    sample_file = search.listing.first_plain(place / name for place in places for name in _SAMPLES)
    # What concerns the model itself first: the rest may be cut.
    ignored = _cut(remarks[found_before:] + remarks[:found_before])
    return ModelFolder(root, models, default, ignored, settings_file, sample_file)


def _default(found: ModelFolder, wanted: str | None) -> ModelFile | None:
    called = [model for model in found.models if wanted and _is_called(model, wanted)]
    if called:
        return called[-1]
    if len(found.names) == 1:
        return found.models[-1]
    if wanted:
        raise ModelError(f"default_model: expected one of {_listing(found.names)}, got {quote(wanted)}")
    return next((model for model in found.models if model.relative == "model.onnx"), None)


def _is_called(model: ModelFile, wanted: str) -> bool:
    return wanted in {model.name, model.relative}


def _listing(names: Iterable[str]) -> str:
    """The first names, quoted, and how many follow."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(quote, names[:_SHOWN])) + more


def _cut(remarks: Sequence[str]) -> tuple[str, ...]:
    """The first remarks, and how many follow."""
    more = [f"and {len(remarks) - _SHOWN} more"] if len(remarks) > _SHOWN else []
    return (*remarks[:_SHOWN], *more)


class _Search:
    """Looks through a folder; what it finds is in ``models``, what it passes by in ``ignored``."""

    def __init__(self, folder: Path, *, allow_links: bool) -> None:
        self.listing = FolderListing(folder, allow_links=allow_links)
        self.ignored = self.listing.ignored
        self.root = folder
        self.models: dict[tuple[str, int | None], ModelFile] = {}
        self.first: dict[str, ModelFile] = {}

    def run(self) -> None:
        """Finds the root, and the models below it."""
        stripped = self.strip()
        folders, files = self.listing.names(self.root)
        self.note_foreign("", [*folders, *files])
        chosen = self.choose("", files)
        for file in chosen:
            stem = PurePosixPath(file).stem
            # A lone <name>/model.onnx keeps the name that it has beside others.
            keeps = len(chosen) == 1 and stem == _USUAL_STEM and not _VERSION.fullmatch(stripped)
            self.add(stripped if stripped and keeps else stem, file)
        for folder in folders:
            if folder not in _FOREIGN:
                self.look_into(folder)

    def strip(self) -> str:
        """Moves the root below lone folders; returns the name of the last one, or nothing."""
        stripped = ""
        for _ in range(_MAX_STRIPPED):
            folders, files = self.listing.names(self.root)
            if files or len(folders) != 1:
                break
            inner = self.root / folders[0]
            # Through a link, everything below would count as inside the root.
            if inner.is_symlink() and not self.listing.allow_links:
                break
            inner_folders, inner_files = self.listing.names(inner)
            if any(map(_VERSION.fullmatch, inner_folders)) and not _models(inner_files):
                break
            self.root, stripped = inner, folders[0]
        return stripped

    def look_into(self, folder: str) -> None:
        """Finds the models of a folder of the root."""
        folders, files = self.listing.names(self.root / folder)
        self.note_foreign(f"{folder}/", files)
        chosen = self.choose(f"{folder}/", files)
        usual = [file for file in chosen if PurePosixPath(file).stem == _USUAL_STEM]
        if usual:
            self.ignored += [f"{folder}/{file} (beside {usual[0]})" for file in chosen if file not in usual]
            chosen = usual
        for file in chosen:
            self.add(folder if len(chosen) == 1 else PurePosixPath(file).stem, f"{folder}/{file}")
        for version in filter(_VERSION.fullmatch, folders):
            self.look_into_version(folder, version)

    def look_into_version(self, folder: str, version: str) -> None:
        """Finds the model of a version folder."""
        place = f"{folder}/{version}/"
        chosen = self.choose(place, self.listing.names(self.root / folder / version)[1])
        usual = [file for file in chosen if PurePosixPath(file).stem == _USUAL_STEM]
        if not chosen:
            self.ignored.append(f"{place} (no .onnx or .ort file)")
        elif usual or len(chosen) == 1:
            self.add(folder, place + (usual or chosen)[0], int(version))
        else:
            raise ModelError(f"{quote(place)}: expected one model file or model.onnx, got {_listing(chosen)}")

    def choose(self, place: str, files: list[str]) -> list[str]:
        """The model files among some, without those that stand beside a preferred one."""
        by_stem: dict[str, str] = {}
        for file in _models(files):
            path = PurePosixPath(file)
            rival = by_stem.setdefault(path.stem, file)
            if rival == file:
                continue
            if PurePosixPath(rival).suffix.lower() == path.suffix.lower():
                raise _clash(path.stem, place + rival, place + file)
            # Sorting by suffix has put the preferred one first.
            self.ignored.append(f"{place}{file} (beside {rival})")
        return sorted(by_stem.values())

    def add(self, name: str, relative: str, version: int | None = None) -> None:
        """Notes a model, unless its name means another one too."""
        model = ModelFile(name, self.root / relative, relative, version)
        first = self.first.setdefault(name, model)
        rival = self.models.get((name, version))
        if rival is None and first is not model and None in {version, first.version}:
            rival = first
        if rival is not None:
            raise _clash(name, rival.relative, relative)
        self.models[name, version] = model

    def note_foreign(self, place: str, names: list[str]) -> None:
        """Notes what is meant for other servers."""
        self.ignored += [place + name for name in names if name in _FOREIGN]

    def nothing_found(self) -> ModelError:
        """What there is instead of a model, and what to do."""
        folders, files = self.listing.names(self.root)
        name = f"the model folder {quote(self.root)}"
        found = [*files, *(f"{folder}/" for folder in folders)]
        if not found and not self.ignored:
            return ModelError(f"{name} is empty: {_EXPECTED}")
        message = f"{name} holds no model: {_EXPECTED}, found: {_listing(found) or 'nothing'}"
        if self.ignored:
            message += f"; ignored: {', '.join(_cut(self.ignored))}"
        return ModelError(message + self.advice())

    def advice(self) -> str:
        """What to do with files that are models, but not ONNX."""
        names = self.listing.all_files()
        for pattern, text in _ADVICE:
            if name := next(filter(pattern.fullmatch, names), None):
                return f"; {quote(name)}: {text}"
        return ""


def _models(files: Iterable[str]) -> list[str]:
    """The model files among some, .onnx before .ort."""
    found = [file for file in files if PurePosixPath(file).suffix.lower() in _SUFFIXES]
    return sorted(found, key=lambda file: _SUFFIXES.index(PurePosixPath(file).suffix.lower()))


def _clash(name: str, one: str, other: str) -> ModelError:
    return ModelError(f"the model name {quote(name)} means two files: {quote(one)} and {quote(other)}")
