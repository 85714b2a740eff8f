"""``image/png``, ``image/jpeg`` and others: one image, for the model's only input of three or four dimensions.

The last three dimensions of the input are an image's (the last two of a model with rows and rank 3: greyscale). The
one of size 1 or 3 counts channels and tells the layout; ``ImageOptions`` settles what is left open. The image is
turned as its EXIF data say, made RGB or greyscale (an alpha channel is dropped, 16 bits become 8, of an animation
the first frame is taken) and resized to the input's height and width where they are fixed, by Pillow's bilinear
filter: https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters

An input of integers takes pixels of 0 to 255. One of floats takes ``(pixel * scale - mean) / std``, by default
pixels divided by 255.

The content tells the format, whatever the media type says: clients send JPEG as ``image/png``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.interface import Body, Codec, CodecOptions, Document, ImageOptions, MediaType
from onnx_serve.codecs.sections import Bounded
from onnx_serve.errors import DecodeError, MismatchError, UnsupportedMediaType, quote
from onnx_serve.tensors import DataType, Dimension, Signature, TensorSpec

__all__ = ["codec", "decode"]

Array: TypeAlias = npt.NDArray[Any]

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, ArithmeticError, RuntimeError,
    AttributeError,
)  # fmt: skip
_COLOUR, _GREY = 3, 1
_WHITE = 255
_CHANNELS = {_COLOUR, _GREY}


@dataclass(frozen=True, slots=True)
class _Target:
    """What an image becomes.

    Attributes:
        spec: The input.
        channels: 1 or 3, or 0 for greyscale without a dimension for channels.
        is_chw: Whether channels come first.
        size: Height and width; None to keep the image's own.
        leading: Dimensions of 1 in front.
    """

    spec: TensorSpec
    channels: int
    is_chw: bool
    size: tuple[Dimension, Dimension]
    leading: int


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document of one record.

    Memory: at most about 16 bytes for each of ``ImageOptions.max_pixels`` pixels, besides the body.

    Raises:
        UnsupportedMediaType: Pillow is not installed.
        MismatchError: The model takes no image, or leaves open how.
        DecodeError: The body is no image that can be read, or a larger one than is read.
    """
    del media_type
    settings = options.image or ImageOptions()
    target = _target(signature, settings)
    pixels = _load(body, target, settings)
    array = _input(pixels, target, settings)
    yield Document(iter(({target.spec.name: array},)))


def _target(signature: Signature, settings: ImageOptions) -> _Target:
    specs = signature.inputs
    if len(specs) != 1 or not specs[0].is_tensor or len(specs[0].shape) not in {3, 4}:
        raise MismatchError(
            f"an image is for a model's only input of 3 or 4 dimensions, and this model takes "
            f"{signature.describe_inputs() or 'no input'}"
        )
    spec = specs[0]
    dtype = spec.dtype
    if not dtype.is_float and not (dtype.is_integer and dtype.limits[1] >= _WHITE):
        raise MismatchError(f'input "{spec.name}" {spec}: its type does not hold pixels of 0 to 255')
    shape = spec.shape
    if not signature.has_rows and len(shape) == 4 and shape[0] not in {1, None} and isinstance(shape[0], int):  # noqa: PLR2004
        raise MismatchError(f'input "{spec.name}" {spec}: it takes several images, and a body is one')
    rank = len(shape)
    dimensions = signature.record_shape(spec) if signature.has_rows else shape[rank - 3 :]
    leading = 1 if signature.has_rows or rank == 4 else 0  # noqa: PLR2004
    if len(dimensions) == 2:  # noqa: PLR2004 - height and width
        return _Target(spec, 0, True, _size(dimensions[0], dimensions[1], settings), leading)
    is_chw = _is_chw(spec, dimensions, settings)
    channels, height, width = dimensions if is_chw else (dimensions[2], dimensions[0], dimensions[1])
    if isinstance(channels, int) and channels not in _CHANNELS:
        raise MismatchError(f'input "{spec.name}" {spec}: expected 1 or 3 channels, got {channels}')
    count = channels if isinstance(channels, int) else _COLOUR
    return _Target(spec, count, is_chw, _size(height, width, settings), leading)


def _is_chw(spec: TensorSpec, dimensions: tuple[Dimension, ...], settings: ImageOptions) -> bool:
    if settings.layout is not None:
        return settings.layout == "chw"
    first, last = dimensions[0] in _CHANNELS, dimensions[2] in _CHANNELS
    if first == last:
        raise MismatchError(
            f'input "{spec.name}" {spec}: its shape does not say which dimension counts channels; '
            "the model's onnx_serve.yaml must name the layout of images, chw or hwc"
        )
    return first


def _size(height: Dimension, width: Dimension, settings: ImageOptions) -> tuple[Dimension, Dimension]:
    wanted = settings.size or (None, None)
    return (
        height if isinstance(height, int) else wanted[0],
        width if isinstance(width, int) else wanted[1],
    )


def _load(body: Body, target: _Target, settings: ImageOptions) -> Array:
    """The image's pixels, ``[H, W]`` or ``[H, W, 3]`` of uint8, in the target's size."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - an extra, loaded by the first image
    except ImportError:
        raise UnsupportedMediaType(
            "images need Pillow, which is not installed here: pip install 'onnx-serve[image]'"
        ) from None
    # Beyond twice its own limit Pillow raises before the size can be asked for, and beyond it warns.
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        file: Any = Bounded(body)  # Pillow's annotations know Python's own files only
        image: Any = Image.open(file, formats=_FORMATS)
        width, height = image.size
        if width * height > settings.max_pixels:
            raise DecodeError(
                f"expected an image of at most {settings.max_pixels} pixels, got {width} x {height}"
            )
        image.load()
        image = _converted(ImageOps.exif_transpose(image), "RGB" if target.channels == _COLOUR else "L")
        height, width = (
            n if isinstance(n, int) else own for n, own in zip(target.size, image.size[::-1], strict=True)
        )
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except bombs as ex:
        raise DecodeError(
            f"expected an image of at most {settings.max_pixels} pixels, got a larger one ({quote(ex)})"
        ) from None
    except _DAMAGE:
        raise DecodeError(
            f"expected an image ({', '.join(_FORMATS)}), got a damaged one or something else"
        ) from None


def _converted(image: Any, mode: str) -> Any:
    """The image in 8 bits of RGB or greyscale."""
    from PIL import Image  # noqa: PLC0415 - an extra, loaded by the first image

    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 255; for colours it keeps the higher byte, and so does this.
        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _input(pixels: Array, target: _Target, settings: ImageOptions) -> Array:
    """Pixels as the input takes them."""
    spec = target.spec
    if pixels.ndim == 3 and settings.channel_order == "bgr":  # noqa: PLR2004 - with channels
        pixels = pixels[:, :, ::-1]
    if spec.dtype.is_float:
        pixels = _normalised(pixels, target, settings)
    elif settings.scale is not None or settings.mean or settings.std:
        raise MismatchError(
            f'input "{spec.name}" {spec}: scale, mean and std of images are for inputs of floats'
        )
    if target.channels == _GREY:
        pixels = pixels[:, :, np.newaxis]
    if target.channels and target.is_chw:
        pixels = pixels.transpose(2, 0, 1)
    array: Array = np.ascontiguousarray(pixels, spec.dtype.numpy)
    return array[np.newaxis] if target.leading else array


def _normalised(pixels: Array, target: _Target, settings: ImageOptions) -> Array:
    spec = target.spec
    # Pixels in float16 would lose bits before they are scaled.
    wide = np.float64 if spec.dtype is DataType.DOUBLE else np.float32
    values: Array = pixels.astype(wide)
    values *= wide(1 / 255 if settings.scale is None else settings.scale)
    for numbers, apply in ((settings.mean, np.subtract), (settings.std, np.divide)):
        if not numbers:
            continue
        if len(numbers) not in {1, max(1, target.channels)}:
            raise MismatchError(
                f'input "{spec.name}" {spec}: expected a mean and std of images for 1 or '
                f"{max(1, target.channels)} channels, got {len(numbers)}"
            )
        apply(values, np.array(numbers, wide), out=values)
    return values


codec = Codec(
    ("application/x-image", "image/png", "image/jpeg", "image/gif", "image/bmp", "image/webp"), decode, None
)
