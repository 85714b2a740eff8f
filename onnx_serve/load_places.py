"""What a caller's load means: the files of the model folder that are to get a name."""

import os
import re
from dataclasses import replace
from pathlib import Path

from onnx_serve.codecs.json_syntax import is_text
from onnx_serve.errors import InvalidName, ModelError, UnknownModel, quote
from onnx_serve.model_files.model_folder import ModelFile, ModelFolder, find_models
from onnx_serve.model_registry import ModelEntry, ModelSlot, is_name
from onnx_serve.settings import Settings, with_model_settings

__all__ = ["entry_at", "find_place", "names_in"]

_SCANNED_NAMES = 10_000
_SUFFIXES = (".onnx", ".ort")
_VERSION = re.compile(r"[0-9]{1,18}")


def find_place(root: Path, name: str, url: str | None, *, allow_links: bool) -> Path:
    """The folder or file that is to be loaded.

    Args:
        root: The model folder, which a load must not leave.
        name: A checked name.
        url: An absolute path; None for what the model folder holds under the name.
        allow_links: Whether links may lead out of the model folder.

    Raises:
        InvalidName: The url is no absolute path, or leads out of the model folder.
        UnknownModel: There is nothing.
    """
    if url is None:
        candidates = [root / name, *(root / f"{name}{suffix}" for suffix in _SUFFIXES)]
    elif "\0" in url or not is_text(url) or not Path(url).is_absolute():
        raise InvalidName(f"url: expected an absolute path, got {quote(url)}")
    else:
        candidates = [Path(url)]
    place = next((path for path in candidates if _exists(path)), None)
    # What is outside is not even said to exist; ".." is out of place even where links are allowed.
    resolve = os.path.abspath if allow_links else os.path.realpath
    if not Path(resolve(place or candidates[0])).is_relative_to(resolve(root)):
        raise InvalidName("url: expected a path inside the model folder, got one outside of it")
    if place is None:
        raise UnknownModel(f"there is nothing to load for the model {quote(name)}")
    return place


def entry_at(place: Path, name: str, url: str, settings: Settings) -> ModelEntry:
    """What a folder or file holds, under the caller's name for it; nothing is loaded.

    Args:
        place: Of ``find_place``.
        name: What requests call it.
        url: What the caller called the place.
        settings: The server's; a folder's ``onnx_serve.yaml`` adds to them.

    Raises:
        ModelError: The folder holds no model, or several and none is meant.
        SettingsError: The folder's ``onnx_serve.yaml`` is wrong.
    """
    if place.is_file():
        file = ModelFile(name, place, place.name)
        return ModelEntry(url, {None: ModelSlot(file, place.parent, settings)})
    folder = find_models(place, default_model=None, allow_links=settings.allow_links)
    versions = _versions(folder, place)
    if folder.settings_file is not None:
        settings = with_model_settings(settings, folder.settings_file)
    slots = {
        version: ModelSlot(replace(file, name=name, version=version), folder.root, settings)
        for version, file in versions.items()
    }
    return ModelEntry(url, slots)


def _versions(folder: ModelFolder, place: Path) -> dict[int | None, ModelFile]:
    """The versions of the only model of a folder, the highest last.

    Version folders that lie in the folder itself look like models whose names are numbers, or like a lone
    leading folder.
    """
    if folder.default is not None:
        own = [file for file in folder.models if file.name == folder.default.name]
        if folder.root != place and own[0].version is None and _VERSION.fullmatch(folder.root.name):
            return {int(folder.root.name): own[0]}
        return {file.version: file for file in own}
    numbered = {int(file.name): file for file in folder.models if _VERSION.fullmatch(file.name)}
    found: dict[int | None, ModelFile] = {number: numbered[number] for number in sorted(numbered)}
    if len(found) < len(folder.models):
        names = ", ".join(map(quote, folder.names[:5]))
        raise ModelError(f"expected one model, got {len(folder.names)}: {names}")
    return found


def names_in(root: Path) -> list[str]:
    """Names of what a model folder holds that could be loaded by name; the first ten thousand."""
    names = []
    try:
        with os.scandir(root) as entries:
            for _, entry in zip(range(_SCANNED_NAMES), entries, strict=False):
                path = Path(entry.name)
                if entry.is_dir():
                    names.append(path.name)
                elif path.suffix in _SUFFIXES:
                    names.append(path.stem)
    except OSError:
        return []
    return [name for name in names if is_name(name) and not name.startswith(".")]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system takes
        return False
