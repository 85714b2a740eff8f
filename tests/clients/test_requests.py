"""``requests``, the way people use it: what it adds, guesses and compresses by itself."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from clients.conftest import Serve
from serving import SAMPLES

ROW = [5.1, 3.5, 1.4, 0.2]
CSV = "5.1,3.5,1.4,0.2\n6.4,2.9,4.3,1.3\n"
ANSWER = "0,1.0,0.0,0.0\n1,0.0,0.974682,0.02531804\n"
AS_CSV = {"Content-Type": "text/csv", "Accept": "text/csv"}


@pytest.fixture
def url(serve: Serve) -> str:
    return f"{serve(SAMPLES / 'iris-classifier').url}/invocations"


def test_json(url: str) -> None:
    """``json=`` sets the type; ``Accept: */*`` and ``Accept-Encoding`` come from requests."""
    response = requests.post(url, json={"instances": [ROW]}, timeout=60)

    assert response.headers["Content-Type"] == "application/json"
    assert response.json()["predictions"][0]["label"] == 0


def test_a_file(url: str) -> None:
    response = requests.post(url, io.BytesIO(CSV.encode()), headers=AS_CSV, timeout=60)

    assert response.text == ANSWER


def test_a_generator_is_sent_in_chunks(url: str) -> None:
    """Which is how a transform job without a payload limit sends a file."""

    def lines() -> Iterator[bytes]:
        yield from (line.encode() for line in CSV.splitlines(keepends=True) * 50)

    response = requests.post(url, lines(), headers=AS_CSV, timeout=60)

    assert response.request.headers["Transfer-Encoding"] == "chunked"
    assert response.text == ANSWER * 50


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body(url: str, coding: str, compress: Any) -> None:
    response = requests.post(
        url, compress(CSV.encode()), headers={**AS_CSV, "Content-Encoding": coding}, timeout=60
    )

    assert response.text == ANSWER


def test_one_connection_for_many_requests(url: str) -> None:
    """An error does not cost the connection, nor does an answer in another format."""
    with requests.Session() as session:
        answers = [
            session.post(url, body, headers={**AS_CSV, "Accept": accept}, timeout=60)
            for body, accept in [(CSV, "text/csv"), ("1,2,x,4", "text/csv"), (CSV, "application/x-npz")] * 3
        ]
        adapter: Any = session.get_adapter(url)
        pools = adapter.poolmanager.pools
        connections = [pools[key].num_connections for key in pools.keys()]  # noqa: SIM118 - urllib3's is no mapping

    assert [answer.status_code for answer in answers] == [200, 400, 200] * 3
    assert connections == [1]
    assert np.load(io.BytesIO(answers[-1].content))["label"].tolist() == [0, 1]


def test_many_outputs_as_npz(url: str) -> None:
    body = io.BytesIO()
    np.savez(body, features=np.array([ROW], np.float32))
    response = requests.post(url, body.getvalue(), headers={"Content-Type": "application/x-npz"}, timeout=60)

    assert response.headers["Content-Type"] == "application/x-npz"
    assert np.load(io.BytesIO(response.content))["probabilities"].shape == (1, 3)


def test_text_beyond_ascii_is_utf_8(serve: Serve) -> None:
    """SageMaker's clients want the bare type, from which requests guesses Latin-1: say the encoding, or use bytes."""
    server = serve(SAMPLES / "text-classifier")
    response = server.post(json.dumps(["größer als gedacht 🪑"]), "application/json", "text/csv")

    assert response.headers["Content-Type"] == "text/csv"
    assert response.encoding == "ISO-8859-1"
    assert response.content.decode("utf-8").count(",") == 3


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"data": {"instances": "[]"}}, "application/x-www-form-urlencoded"),
        ({"files": {"file": ("rows.csv", CSV, "text/csv")}}, "multipart/form-data"),
        ({"data": CSV}, "got none"),
    ],
    ids=["a form", "an upload", "no type"],
)
def test_bodies_of_the_wrong_kind_are_told(url: str, options: dict[str, Any], got: str) -> None:
    """A dictionary as ``data`` is a form, and ``files`` an upload in parts."""
    response = requests.post(url, timeout=60, **options)

    assert response.status_code == 415
    assert got in response.json()["error"]
    assert "text/csv" in response.json()["error"]


@pytest.mark.parametrize("path", ["ping", "execution-parameters"])
def test_what_the_platform_asks(url: str, path: str) -> None:
    response = requests.get(url.replace("invocations", path), timeout=5)

    assert response.status_code == 200
    assert bool(response.content) == (path != "ping")
