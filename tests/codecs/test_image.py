import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import check_arbitrary_bytes, decode, decode_rows, signature
from onnx_serve.codecs.image import codec
from onnx_serve.codecs.interface import CodecOptions, ImageOptions
from onnx_serve.errors import DecodeError, MismatchError
from onnx_serve.tensors import RowAxis, Signature

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

Array = npt.NDArray[Any]
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
CHW = signature(("x", "uint8", ["N", 3, "H", "W"]))
HWC = signature(("x", "uint8", ["N", "H", "W", 3]))
GREY = signature(("x", "uint8", ["N", "H", "W"]))


def saved(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, model: Signature = HWC, **options: Any) -> Array:
    array: Array = decode_rows(codec, data, model, options=CodecOptions(image=ImageOptions(**options)))["x"]
    return array


def test_an_image_is_one_record() -> None:
    np.testing.assert_array_equal(pixels(saved(RGB)), RGB[None])
    np.testing.assert_array_equal(decode_rows(codec, saved(RGB), CHW)["x"], RGB.transpose(2, 0, 1)[None])


LAYOUTS: dict[str, tuple[Signature, tuple[int, ...]]] = {
    "one channel": (signature(("x", "uint8", ["N", 1, "H", "W"])), (1, 1, 6, 8)),
    "one channel last": (signature(("x", "uint8", ["N", "H", "W", 1])), (1, 6, 8, 1)),
    "no channels": (GREY, (1, 6, 8)),
    "one image": (signature(("x", "uint8", [1, 3, 4, 5]), row_axis=RowAxis.NONE), (1, 3, 4, 5)),
    "rank 3": (signature(("x", "uint8", [3, None, None]), row_axis=RowAxis.NONE), (3, 6, 8)),
    "fixed rows": (signature(("x", "uint8", [4, 3, 2, 2]), row_axis=RowAxis.FIXED, fixed_rows=4), (1, 3, 2, 2)),
    "fixed height": (signature(("x", "uint8", ["N", 3, 12, "W"])), (1, 3, 12, 8)),
}  # fmt: skip


@pytest.mark.parametrize(("model", "shape"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout_and_size_follow_from_the_input(model: Signature, shape: tuple[int, ...]) -> None:
    [(_, [block])] = decode(codec, saved(RGB), model)

    assert block["x"].shape == shape


def test_resizing_is_pillows_bilinear_filter() -> None:
    model = signature(("x", "uint8", ["N", 3, 3, 5]))
    expected = np.asarray(Image.fromarray(RGB).resize((5, 3), Image.Resampling.BILINEAR))

    np.testing.assert_array_equal(decode_rows(codec, saved(RGB), model)["x"][0], expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels(saved(RGB), size=(3, 5))[0], expected)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float", np.float32), ("float16", np.float16), ("double", np.float64)]
)
def test_floats_are_pixels_divided_by_255(kind: str, dtype: Any) -> None:
    model = signature(("x", kind, ["N", "H", "W", 3]))

    got = decode_rows(codec, saved(RGB), model)["x"]
    assert got.dtype == dtype
    np.testing.assert_allclose(got[0], RGB / 255, rtol=1e-3 if kind == "float16" else 1e-6)


def test_options_scale_subtract_and_divide_in_this_order() -> None:
    model = signature(("x", "float", ["N", 3, "H", "W"]))
    got = pixels(saved(RGB), model, scale=1.0, mean=(10, 20, 30), std=(2.0,), channel_order="bgr")

    np.testing.assert_allclose(got[0], ((RGB[:, :, ::-1] - np.array([10, 20, 30])) / 2).transpose(2, 0, 1))


def test_greyscale_takes_one_mean() -> None:
    model = signature(("x", "float", ["N", 1, "H", "W"]))
    got = pixels(saved(RGB[:, :, 0]), model, scale=1.0, mean=(5,))

    np.testing.assert_array_equal(got[0, 0], RGB[:, :, 0] - np.float32(5))


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_the_layout_may_be_named(layout: str) -> None:
    model = signature(("x", "uint8", ["N", None, None, None]))

    assert pixels(saved(RGB), model, layout=layout).shape == (
        (1, 3, 6, 8) if layout == "chw" else (1, 6, 8, 3)
    )


# What images are made of.


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "JPEG"])
def test_the_content_tells_the_format(kind: str) -> None:
    flat = np.full((6, 8, 3), 128, np.uint8)

    assert np.abs(pixels(saved(flat, kind)).astype(int) - 128).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_eight_bits_of_rgb_or_grey(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 8), 0x80FF, np.uint16))
    else:
        image = Image.fromarray(np.full((6, 8, 3), 128, np.uint8)).convert(mode.replace("PA", "P"))
    data = saved(image, "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG")
    # Bits and palettes are dithered.
    flat = {"1": (0, 255), "P": (100, 155), "PA": (100, 155)}.get(mode, (125, 131))

    for model in (HWC, GREY):
        got = pixels(data, model)
        assert got.dtype == np.uint8
        assert flat[0] <= got.min() <= got.max() <= flat[1]


def test_transparency_is_dropped() -> None:
    """As Pillow's own convert("RGB") does, which training code calls."""
    rgba = np.dstack([RGB, np.zeros((6, 8), np.uint8)])
    np.testing.assert_array_equal(pixels(saved(rgba))[0], RGB)

    palette = Image.fromarray(RGB).quantize(4)
    data = saved(palette, transparency=bytes([0, 255, 255, 255]))
    np.testing.assert_array_equal(pixels(data)[0], np.asarray(palette.convert("RGB")))


# What turns stored pixels into those to be seen, by the value of the tag Orientation.
TURNED: dict[int, Callable[[Array], Array]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_as_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    np.testing.assert_array_equal(pixels(saved(RGB, exif=exif))[0], TURNED[orientation](RGB))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (10, 200)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])

    assert np.unique(pixels(data, GREY)).tolist() == [10]


# Bad input.

FLOAT = signature(("x", "float", ["N", 3, "H", "W"]))
MODELS: dict[str, tuple[Signature, dict[str, Any], str]] = {
    "rank 2": (signature(("x", "float", ["N", 4])), {}, "only input of 3 or 4 dimensions"),
    "two inputs": (signature(("x", "float", ["N", 3, 2, 2]), ("y", "float", ["N"])), {}, "and this model takes"),
    "sequence": (signature(("x", "seq(tensor(float))", [1, 3, 2, 2])), {}, "and this model takes"),
    "strings": (signature(("x", "string", ["N", 3, 2, 2])), {}, "does not hold pixels of 0 to 255"),
    "int8": (signature(("x", "int8", ["N", 3, 2, 2])), {}, "does not hold pixels of 0 to 255"),
    "int4": (signature(("x", "int4", ["N", 3, 2, 2])), {}, "does not hold pixels of 0 to 255"),
    "several images": (signature(("x", "float", [2, 3, 2, 2]), row_axis=RowAxis.NONE), {}, "a body is one"),
    "unknown layout": (signature(("x", "float", ["N", "C", "H", "W"])), {}, "must name the layout of images"),
    "both layouts": (signature(("x", "float", ["N", 3, "H", 3])), {}, "must name the layout of images"),
    "four channels": (signature(("x", "float", ["N", 4, "H", "W"])), {"layout": "chw"}, "expected 1 or 3 channels, got 4"),
    "mean": (FLOAT, {"mean": (1, 2)}, "a mean and std of images for 1 or 3 channels, got 2"),
    "std of integers": (CHW, {"std": (1,)}, "scale, mean and std of images are for inputs of floats"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "options", "problem"), MODELS.values(), ids=MODELS)
def test_models_that_take_no_image_are_named(model: Signature, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(MismatchError, match=problem):
        pixels(saved(RGB), model, **options)


def png(width: int, height: int) -> bytes:
    """A PNG that says this size and holds a hundred bytes of zeros for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "size", [(5, 9), (7000, 7000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)], ids=str
)
def test_images_that_say_they_are_large_are_refused_unread(size: tuple[int, int]) -> None:
    with pytest.raises(DecodeError, match="expected an image of at most 40 pixels, got"):
        pixels(png(*size), max_pixels=40)


DATA = {"png": saved(RGB), "jpeg": saved(RGB, "JPEG"), "gif": saved(RGB, "GIF"), "webp": saved(RGB, "WEBP"), "bmp": saved(RGB, "BMP")}  # fmt: skip


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_truncated_images_are_refused(data: bytes) -> None:
    for keep in (0, 1, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(
            DecodeError, match=r"expected an image \(PNG, JPEG, GIF, BMP, WEBP\), got a damaged one"
        ):
            pixels(data[:keep])


@given(
    st.sampled_from(list(DATA.values())),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=300)
def test_images_with_changed_bytes_decode_or_are_refused(data: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for at, byte in changes:
        changed[at % len(changed)] = byte
    check_arbitrary_bytes(codec, bytes(changed), HWC, CodecOptions(image=ImageOptions(max_pixels=10_000)))


def test_without_pillow_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "from codec_laws import decode, signature\n"
        "from onnx_serve.codecs.image import codec\n"
        "try: decode(codec, b'', signature(('x', 'float', ['N', 3, 'H', 'W'])))\n"
        "except Exception as ex: print(type(ex).__name__, ex)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == (
        "UnsupportedMediaType images need Pillow, which is not installed here: pip install 'onnx-serve[image]'\n"
    )
