"""``application/x-npz``: arrays by name, a ZIP archive with one ``<name>.npy`` a member.

In a request the names are the model's inputs; a model of one input takes an archive of one array of any
name. The archives of ``scipy.sparse.save_npz`` are read too (``sparse_matrix``): a matrix becomes dense rows for the
model's only input, a block at a time. An input with a default, or an optional one, may be missing.
In an answer the names are the outputs, but for an optional without value; maps (ZipMap) are ``<name>``, their values ``[N, K]``, and ``<name>.keys``.

Nothing an archive declares is trusted: its directory may take 256 KiB and hold 1,000 members, which unpack to
at most 1 GiB, and to at most a hundred times the body where that is more than 64 MiB. A string counts 64 bytes more
than it has in the file: that is what it takes in Python.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs import npy, sparse_matrix
from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, Layout, MediaType
from onnx_serve.errors import DecodeError, EncodeError, quote
from onnx_serve.tensors import Signature, TensorSpec, conform

__all__ = ["codec", "decode", "encode"]

Array: TypeAlias = npt.NDArray[Any]

_MAX_DIRECTORY = 1 << 18
_MAX_MEMBERS = 1000
_MAX_UNPACKED = 1 << 30
_ALWAYS_UNPACKED = 1 << 26
_MAX_RATIO = 100
_PIECE_BYTES = 1 << 20
_STRING_BYTES = 64
_ENCRYPTED = 0x1  # flag bit 0: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.4.4
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that ZIP can say: equal answers are equal bytes

# What zipfile is seen to raise on damaged archives, besides its own BadZipFile.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError, OverflowError,
    RuntimeError, ValueError,
)  # fmt: skip


class _BoundedReads:
    """A stream whose reads are cut at 256 KiB, so that zipfile cannot be made to load a larger directory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(min(size, _MAX_DIRECTORY) if size >= 0 else _MAX_DIRECTORY)


class _Section(io.RawIOBase):
    """What is appended to a stream, as a stream of its own: an archive's offsets count from its start."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._start = stream.tell()

    def write(self, data: Any, /) -> int:
        return self._stream.write(data)

    def tell(self) -> int:
        return self._stream.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        assert whence == io.SEEK_SET
        return self._stream.seek(self._start + offset) - self._start


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document: all inputs in one block, or the rows of a sparse matrix in several.

    Raises:
        DecodeError: The archive is damaged, refused or too large, or a member is no array that can be read.
        PayloadTooLarge: What it unpacks to has no room in memory.
        MismatchError: The names are not the inputs', or there are no rows and none would fit.
    """
    del media_type
    limit = min(_MAX_UNPACKED, max(_ALWAYS_UNPACKED, _MAX_RATIO * body.length))
    try:
        # Closing the archive leaves a stream that was handed in open.
        archive = zipfile.ZipFile(_BoundedReads(_seekable(body)))
    except _DAMAGE as ex:
        raise DecodeError(
            f"expected a ZIP archive of .npy files, got a damaged or other file ({quote(ex)})"
        ) from None
    members = _members(archive, limit)
    # As much again for the arrays in the model's types.
    unpacked = sum(info.file_size for info in members.values())
    body.check_room(
        body.length + 2 * unpacked, f"an archive of {unpacked} bytes unpacked", "send fewer rows in one"
    )
    expected = {spec.name for spec in signature.inputs}
    required = {spec.name for spec in signature.inputs if not spec.is_optional}
    known = expected | {spec.name for spec in signature.defaults}
    if not required <= members.keys() <= known and members.keys() >= sparse_matrix.MEMBERS:
        matrix = _read_all(archive, members, limit)
        yield Document(sparse_matrix.dense_blocks(matrix, signature, options, limit), Layout.COLUMNS)
        return
    if len(expected) == len(members) == 1 and not members.keys() <= known:
        members = dict(zip(expected, members.values(), strict=True))
    if not required <= members.keys() <= known:
        # Always raises: conform words what is missing and what is unknown.
        conform(dict.fromkeys(members, np.empty(0)), signature)
    arrays = _read_all(archive, members, limit)
    no_rows = signature.has_rows and any(arrays[name].shape[:1] == (0,) for name in expected)
    if no_rows:
        conform(arrays, signature)
    yield Document(() if no_rows else (arrays,), Layout.COLUMNS)


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """Writes one uncompressed member an output, all answers after one another along dimension 0.

    Outputs are held until all are there. Rows, runs, strings and no blocks at all are as in application/x-npy.

    Raises:
        EncodeError: An output is no tensor, its parts do not fit together, or two members have one name.
    """
    del media_type, options
    keys: dict[str, tuple[int | str, ...]] = {}
    columns: dict[str, list[Array]] = {spec.name: [] for spec in signature.outputs}
    for answer in answers:
        for block in answer.blocks:
            for spec in signature.outputs:
                # An optional without value is a member that is not there.
                if block[spec.name] is not None or not spec.is_optional:
                    columns[spec.name].append(npy.array_of(block[spec.name], spec.name, keys))
    members: list[tuple[str, list[Array]]] = []
    for spec in signature.outputs:
        if spec.is_optional and not columns[spec.name]:
            continue
        arrays = list(npy.stacked(iter(columns[spec.name]), signature))
        members.append((spec.name, arrays or [npy.empty_output(spec, signature)]))
        if spec.is_map_sequence or spec.name in keys:
            members.append((f"{spec.name}.keys", [_key_array(keys.get(spec.name, ()), spec)]))
    names = [name for name, _ in members]
    for name in names:
        if names.count(name) > 1:
            raise EncodeError(f"an archive holds one array a name, and two outputs would be {quote(name)}")
    layouts = [npy.joined(arrays, name) for name, arrays in members]
    with zipfile.ZipFile(_Section(sink), "w") as archive:
        for (name, arrays), (dtype, shape) in zip(members, layouts, strict=True):
            _write(archive, name, arrays, dtype, shape)


def _key_array(keys: tuple[int | str, ...], spec: TensorSpec) -> Array:
    strings = isinstance(keys[0], str) if keys else "map(string" in spec.onnx_type
    return np.array(keys, object if strings else np.int64)


def _write(
    archive: zipfile.ZipFile, name: str, arrays: list[Array], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    header = npy.header_bytes(dtype, shape)
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    info.create_system = 3  # Unix, whatever writes it
    # Tells zipfile whether the member needs ZIP64.
    info.file_size = len(header) + dtype.itemsize * math.prod(shape)
    with archive.open(info, "w") as member:
        member.write(header)
        for array in arrays:
            npy.write_array(member, array, dtype)


def _seekable(body: Body) -> BinaryIO:
    if body.stream.seekable() and body.stream.tell() == 0:
        return body.stream
    return io.BytesIO(body.read_all())


def _members(archive: zipfile.ZipFile, limit: int) -> dict[str, zipfile.ZipInfo]:
    """The members by array name, none of them read yet."""
    if len(archive.infolist()) > _MAX_MEMBERS:
        raise DecodeError(f"expected at most {_MAX_MEMBERS} arrays, got {len(archive.infolist())}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise DecodeError(f"expected members named <input name>.npy, got {quote(info.filename)}")
        if name in members:
            raise DecodeError(f"{_place(info)}expected each name once")
        if info.flag_bits & _ENCRYPTED:
            raise DecodeError(f"{_place(info)}encrypted members are not read")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise DecodeError(
                f"{_place(info)}expected compression method 0 (stored) or 8 (deflated), got {info.compress_type}"
            )
        members[name] = info
    _check_fits(sum(info.file_size for info in members.values()), limit)
    return members


def _read_all(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], limit: int) -> dict[str, Array]:
    """The members' arrays by name, which may take ``limit`` bytes in all."""
    needed = sum(info.file_size for info in members.values())
    arrays = {}
    for name, info in members.items():
        arrays[name] = _read(archive, info, needed, limit)
        needed += _strings_bytes(arrays[name].dtype, arrays[name].size)
    return arrays


def _check_fits(needed: int, limit: int) -> None:
    if needed > limit:
        raise DecodeError(
            f"expected arrays of at most {limit} bytes unpacked, for a body of this size, got {needed}"
        )


def _strings_bytes(dtype: np.dtype[Any], count: int) -> int:
    """What so many strings take in Python beside their characters; of other elements, nothing."""
    return _STRING_BYTES * count if dtype.kind in "US" else 0


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, needed: int, limit: int) -> Array:
    """One member's array; exactly the declared number of bytes are unpacked, and their CRC is checked.

    Args:
        archive: Holds it.
        info: The member.
        needed: Bytes that all members take, but for what this one's strings take in Python.
        limit: Bytes that they may take.
    """
    place = _place(info)
    try:
        with archive.open(info) as member:
            header = npy.read_header(member, info.file_size, place)
            _check_fits(needed + _strings_bytes(header.dtype, math.prod(header.shape)), limit)
            data = np.empty(header.nbytes, np.uint8)
            _read_into(member, data, place)
    except _DAMAGE as ex:
        raise DecodeError(f"{place}damaged ({quote(ex)})") from None
    return npy.to_native(data.data, header, header.shape, place)


def _read_into(member: IO[bytes], data: npt.NDArray[np.uint8], place: str) -> None:
    """Fills the array a piece at a time: zipfile takes quadratic time for a large read at once."""
    end = 0
    while end < data.size:
        piece = member.read(min(_PIECE_BYTES, data.size - end))
        if not piece:
            raise DecodeError(f"{place}the member ends {data.size - end} bytes early")
        data[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
        end += len(piece)


def _place(info: zipfile.ZipInfo) -> str:
    return f"member {quote(info.filename)}: "


# The body, its arrays and their conforming copies.
codec = Codec(("application/x-npz",), decode, encode, whole=3.0, mirrored=True)
