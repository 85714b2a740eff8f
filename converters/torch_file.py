"""Torch files read into models, running as little code of theirs as the format allows.

Tensors (``torch.save`` of a state dict, safetensors) need a factory of the user's that makes the module
they belong to. Whole modules are pickles: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import importlib
import io
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from converters.artifact import Format
from converters.errors import ConversionError, MissingExtra
from converters.torch_archive import check_export_archive
from onnx_serve.errors import quote

__all__ = ["build", "load_state", "read_model"]

# Keys under which training loops keep the state dict of a module in a checkpoint, and what wrappers put
# before each name: DataParallel, torch.compile, Lightning.
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 4


def read_model(
    path: Path, kind: Format, *, factory: str = "", import_path: str = "", trust_pickle: bool = False
) -> Any:
    """Reads an artifact into an ``nn.Module``, ``ScriptModule`` or ``ExportedProgram`` on the CPU.

    Args:
        path: The file.
        kind: What ``artifact.detect`` says of it.
        factory: ``module:callable``, which makes the module that a state dict belongs to.
        import_path: A folder where Python finds the factory's module, or a pickled module's classes.
        trust_pickle: Whether code that the file names may be run.

    Raises:
        ConversionError: It is damaged, needs ``trust_pickle`` or a factory, or does not fit the factory's module.
    """
    if kind.runs_code and not trust_pickle:
        raise ConversionError(
            f"{kind.title} files run code when they are read: add --trust-pickle if you trust {quote(path.name)}"
        )
    if import_path:
        if not Path(import_path).is_absolute() or not Path(import_path).is_dir():
            raise ConversionError(
                f"import_path: expected the absolute path of a folder, got {quote(import_path)}"
            )
        sys.path.insert(0, import_path)
        importlib.invalidate_caches()
    if factory and kind in (Format.TORCH_EXPORT, Format.TORCHSCRIPT):
        raise ConversionError(f"factory: a {kind.title} file holds its module; a factory is for state dicts")
    if kind is Format.TORCH_EXPORT:
        return _read_export(path, trust_pickle=trust_pickle)
    if kind is Format.TORCHSCRIPT:
        return _guarded(path, kind, lambda: torch.jit.load(str(path), map_location="cpu"))
    found = (
        _read_safetensors(path) if kind is Format.SAFETENSORS else _read_save(path, trust_pickle=trust_pickle)
    )
    return _module_of(found, path, factory)


def build(factory: str) -> Any:
    """Imports and calls a factory.

    Raises:
        ConversionError: It is not ``module:callable``, cannot be imported, or makes no module.
    """
    place, _, name = factory.partition(":")
    if not place or not name:
        raise ConversionError(f"factory: expected module:callable, got {quote(factory)}")
    try:
        made = importlib.import_module(place)
        for step in name.split("."):
            made = getattr(made, step)
    except (ImportError, AttributeError, SyntaxError) as ex:
        raise ConversionError(
            f"factory: {quote(factory)} cannot be imported: {ex} (is import_path right?)"
        ) from ex
    try:
        module: Any = made()  # type: ignore[operator]  # whatever the user named; a TypeError says what it is
    except Exception as ex:
        raise ConversionError(
            f"factory: {quote(factory)} failed: {type(ex).__name__}: {str(ex)[:200]}"
        ) from ex
    if not isinstance(module, torch.nn.Module):
        raise ConversionError(
            f"factory: expected {quote(factory)} to make a torch.nn.Module, got a {type(module).__name__}"
        )
    return module


def load_state(module: Any, state: Mapping[str, Any]) -> None:
    """Loads a state dict strictly, after taking off what checkpoints and wrappers put around it.

    Tensors that the module shares under two names may be there once, as safetensors writes them.

    Raises:
        ConversionError: Names or shapes are not the module's.
    """
    expected = module.state_dict()
    state = _unwrapped(state, expected)
    missing = [name for name in expected if name not in state and not _is_tied(name, expected, state)]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{quote(name)} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and isinstance(tensor, torch.Tensor) and state[name].shape != tensor.shape
    ]
    parts = [
        _listed("missing", list(map(quote, missing))),
        _listed("unknown", list(map(quote, unknown))),
        _listed("", shapes),
    ]
    if any(parts):
        raise ConversionError(
            f"the state dict does not fit the {type(module).__name__} that the factory makes: {'; '.join(filter(None, parts))}"
        )
    module.load_state_dict(state, strict=False)


def _read_export(path: Path, *, trust_pickle: bool) -> Any:
    if not trust_pickle:
        check_export_archive(path)
        _check_tensors(path)
    return _guarded(path, Format.TORCH_EXPORT, lambda: torch.export.load(str(path)))


def _check_tensors(path: Path) -> None:
    """Every pickle in the archive holds tensors alone: torch falls back to one that runs code."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
                except Exception as ex:
                    raise ConversionError(
                        f"the torch.export archive's {quote(name)} holds more than tensors: add --trust-pickle if "
                        "you trust its author"
                    ) from ex


def _read_save(path: Path, *, trust_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as ex:
        if not trust_pickle:
            raise ConversionError(
                f"{quote(path.name)} holds more than tensors, and reading it runs code that it names: add --trust-pickle "
                "if you trust its author, or save module.state_dict() and name a factory"
            ) from ex
    except Exception as ex:
        raise _damaged(path, Format.TORCH_SAVE, ex) from ex
    return _guarded(path, Format.TORCH_SAVE, lambda: torch.load(path, map_location="cpu", weights_only=False))


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import (  # type: ignore[import-not-found,unused-ignore]  # not installed with the server  # noqa: PLC0415
            load_file,
        )
    except ModuleNotFoundError:
        raise MissingExtra("convert-torch", "safetensors") from None
    return _guarded(path, Format.SAFETENSORS, lambda: load_file(str(path), device="cpu"))


def _guarded(path: Path, kind: Format, read: Any) -> Any:
    try:
        return read()
    except (ModuleNotFoundError, AttributeError) as ex:
        raise ConversionError(
            f"{quote(path.name)} names code that cannot be imported: {ex} (is import_path right?)"
        ) from ex
    except Exception as ex:
        raise _damaged(path, kind, ex) from ex


def _damaged(path: Path, kind: Format, ex: Exception) -> ConversionError:
    line = next(iter(str(ex).splitlines()), "")[:200]
    return ConversionError(
        f"{quote(path.name)} is no readable {kind.title} file: {type(ex).__name__}: {line}"
    )


def _module_of(found: Any, path: Path, factory: str) -> Any:
    if isinstance(found, torch.nn.Module):
        if factory:
            raise ConversionError(
                f"factory: {quote(path.name)} holds its module; a factory is for state dicts"
            )
        return found
    if not isinstance(found, Mapping):
        raise ConversionError(
            f"{quote(path.name)}: expected a module or a state dict, got a {type(found).__name__}"
        )
    if not factory:
        raise ConversionError(
            f"{quote(path.name)} holds tensors and no module: name what makes it with --factory module:callable"
        )
    module = build(factory)
    load_state(module, found)
    return module


def _unwrapped(state: Mapping[Any, Any], expected: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _CHECKPOINT_KEYS:
        if isinstance(state.get(key), Mapping) and key not in expected:
            state = state[key]
            break
    for prefix in _PREFIXES:
        if (
            state
            and all(str(name).startswith(prefix) for name in state)
            and not any(map(state.__contains__, expected))
        ):
            state = {str(name).removeprefix(prefix): value for name, value in state.items()}
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise ConversionError(
            "expected a state dict of tensors; the file's mapping has the keys "
            + ", ".join(map(quote, list(state)[:_SHOWN]))
        )
    return state


def _is_tied(name: str, expected: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    tensor = expected[name]
    return tensor.numel() > 0 and any(
        other in state and expected[other].data_ptr() == tensor.data_ptr() for other in expected
    )


def _listed(word: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{word} {', '.join(items[:_SHOWN])}{more}".strip()
