"""YAML read strictly, whoever wrote it: the one door to PyYAML.

Both the operator's files and those that come with a model are read here. The language is that of
``yaml.safe_load`` without what makes a small file large or hides a mistake: anchors, aliases, tags, merge
keys, a key that stands twice. Time and memory are bounded whatever the bytes are.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from onnx_serve.errors import SettingsError, quote

__all__ = ["InvalidYaml", "parse_yaml", "read_yaml_map", "render_yaml", "show_yaml"]

_MAX_FILE_BYTES = 1 << 20
_MAX_NODES = 10_000
_MAX_TEXT = 4096
_MAX_INT64 = (1 << 63) - 1


class InvalidYaml(Exception):
    """The text is not YAML, or more than is read; says what is wrong, and where."""


def read_yaml_map(file: Path, where: str) -> dict[object, Any]:
    """The keys and values of a file, unchecked; none for an empty file.

    Args:
        file: A regular file of at most 1 MiB, or a link to one.
        where: What messages call it.

    Raises:
        SettingsError: The file cannot be read, is not YAML, or holds something else than a map.
    """
    try:
        # Opening a pipe would wait for a writer.
        if file.exists() and not file.is_file():
            raise SettingsError(f"{where}: expected a file, got a folder, pipe or device")
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{where}: expected a file that can be read: {error.strerror}") from None
    try:
        content = parse_yaml(data)
    except InvalidYaml as error:
        raise SettingsError(f"{where}: expected a map of settings, got {error}") from None
    if not isinstance(content, dict | None):
        raise SettingsError(f"{where}: expected a map of settings, got {show_yaml(content)}")
    return content or {}


def parse_yaml(data: str | bytes) -> object:
    """The value of one YAML document; its integers may have any size.

    Raises:
        InvalidYaml: The text is longer than 1 MiB, or is not the YAML that this module reads.
    """
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidYaml(f"more than {_MAX_FILE_BYTES} bytes")
    try:
        return yaml.load(data, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = " ".join(str(error.problem).split())[:120]
        raise InvalidYaml(f"invalid YAML: {problem}{place}") from None
    except (yaml.YAMLError, ValueError):
        # ValueError: dates and numbers that only look like such: 2024-99-99, 0x_.
        raise InvalidYaml("invalid YAML: a character or number that it does not allow") from None
    except RecursionError:
        raise InvalidYaml("YAML that is nested too deeply") from None


def show_yaml(value: object) -> str:
    """A value in a message: never a whole collection, nor an integer too long to print."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and not -_MAX_INT64 <= value <= _MAX_INT64:
        return "an integer beyond 64 bits"
    return quote(value) if isinstance(value, str) else render_yaml(value)


def render_yaml(value: object) -> str:
    """A value as one would write it in a file; text stands bare, and so may need quotes there."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=str, ensure_ascii=False)


class _Loader(yaml.SafeLoader):
    """``yaml.safe_load`` without what makes a small file large or hides a mistake: aliases, tags, merges."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # types-pyyaml leaves it bare
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem="too many values", problem_mark=event.start_mark)
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="an anchor, alias or tag", problem_mark=event.start_mark)
        # Reading a number of base 60 (1:59:59...) takes time that grows with the square of its length.
        if len(getattr(event, "value", "")) > _MAX_TEXT:
            raise yaml.MarkedYAMLError(problem="a value that is too long", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - SafeLoader's signature
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise yaml.MarkedYAMLError(problem="a key that is no name", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key {quote(key.value)} twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
