"""The names in a model folder that may be seen, whatever lies there.

Names with a leading dot, ``__MACOSX``, names that would garble a log and folders that are links out of the
model folder are passed by. Folders are read, files never.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from onnx_serve.errors import ModelError, quote
from onnx_serve.model_files.regular_file import reason_of

__all__ = ["FolderListing"]


class FolderListing:
    """Lists folders, each once; for one thread and one search.

    Args:
        folder: The model folder, which listings must not leave by a link.
        allow_links: Whether they may.

    Attributes:
        ignored: What was passed by although one might think that it plays a part, with its reason.
    """

    def __init__(self, folder: Path, *, allow_links: bool) -> None:
        self.folder = folder
        self.allow_links = allow_links
        self.ignored: list[str] = []
        self._real = os.path.realpath(folder)
        self._names: dict[Path, tuple[list[str], list[str]]] = {}

    def names(self, place: Path) -> tuple[list[str], list[str]]:
        """The folders and the files of a folder, each in alphabetical order; none where it cannot be read.

        Raises:
            ModelError: The model folder itself cannot be read.
        """
        if place not in self._names:
            try:
                with os.scandir(place) as entries:
                    self._names[place] = self._sort(entries)
            except OSError as error:
                if place == self.folder:
                    raise self._unreadable(error) from None
                self.ignored.append(f"{place.name}/ ({reason_of(error)})")
                self._names[place] = [], []
        return self._names[place]

    def all_files(self) -> list[str]:
        """The names of the files in every folder that has been listed."""
        return [name for _, files in self._names.values() for name in files]

    def first_plain(self, paths: Iterable[Path]) -> Path | None:
        """The first path that is a regular file inside the model folder; others that exist are ignored."""
        for path in paths:
            if not os.path.lexists(path):
                continue
            real = Path(os.path.realpath(path))
            if real.is_file() and (self.allow_links or real.is_relative_to(self._real)):
                return path
            self.ignored.append(f"{path.name} (no regular file of the model folder)")
        return None

    def _sort(self, entries: Iterable[os.DirEntry[str]]) -> tuple[list[str], list[str]]:
        """Tells folders from files."""
        folders: list[str] = []
        files: list[str] = []
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name == "__MACOSX":
                continue
            if not name.isprintable():
                self.ignored.append(f"{quote(name)} (no printable name)")
            elif not _is_folder(entry):
                files.append(name)
            elif self._is_inside(entry):
                folders.append(name)
            else:
                self.ignored.append(f"{name}/ (a link out of the model folder; see allow_links)")
        return sorted(folders), sorted(files)

    def _is_inside(self, entry: os.DirEntry[str]) -> bool:
        """Whether a folder may be looked into."""
        if self.allow_links or not entry.is_symlink():
            return True
        return Path(os.path.realpath(entry.path)).is_relative_to(self._real)

    def _unreadable(self, error: OSError) -> ModelError:
        """Why the model folder cannot be listed."""
        name = f"the model folder {quote(self.folder)}"
        if isinstance(error, FileNotFoundError):
            return ModelError(f"{name} does not exist")
        if isinstance(error, NotADirectoryError):
            return ModelError(f"{name} is a file, expected a folder")
        return ModelError(f"{name} cannot be read: {reason_of(error)}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads nowhere
