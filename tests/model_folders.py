"""Model folders made of empty files."""

from pathlib import Path

from onnx_serve.model_files.model_folder import ModelFolder, find_models


def touch(folder: Path, *names: str) -> None:
    """Makes empty files, and the folders they lie in; a name that ends with / is a folder."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


def find(folder: Path, default_model: str | None = None) -> ModelFolder:
    return find_models(folder, default_model=default_model)
