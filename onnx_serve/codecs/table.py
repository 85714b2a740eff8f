"""All wire formats, and which one a media type means."""

from onnx_serve.codecs import (
    arrow_stream,
    csv,
    image,
    json,
    jsonlines,
    libsvm,
    npy,
    npz,
    octet_stream,
    parquet,
    recordio,
)
from onnx_serve.codecs.interface import Codec

__all__ = ["BY_MEDIA_TYPE", "CSV", "DEFAULT", "JSON_LINES", "NPY", "NPZ", "TABLE", "decodable"]

DEFAULT = json.codec
CSV = csv.codec
JSON_LINES = jsonlines.codec
NPY = npy.codec
NPZ = npz.codec
# In the order that documents and error messages list them, and that wildcards in Accept choose by.
TABLE: tuple[Codec, ...] = (
    DEFAULT,
    CSV,
    JSON_LINES,
    NPY,
    NPZ,
    recordio.codec,
    libsvm.codec,
    parquet.codec,
    arrow_stream.codec,
    octet_stream.codec,
    image.codec,
)
BY_MEDIA_TYPE = {name: codec for codec in TABLE for name in codec.media_types}


def decodable() -> list[str]:
    """The first name of every format that a request may have."""
    return [codec.media_types[0] for codec in TABLE if codec.decode is not None]
