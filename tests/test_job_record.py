import os
from pathlib import Path
from typing import Any

import pytest

from onnx_serve.batch import job_record
from onnx_serve.batch.job_record import JobRecord, job_digest
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.errors import SettingsError
from onnx_serve.settings import Settings, load_settings


def settings(folder: Path, **flags: Any) -> Settings:
    return load_settings(config_file=None, environ={}, flags={"model_dir": str(folder), **flags})


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "sub" / "data").write_bytes(b"more")
    (folder / "dangling").symlink_to("nowhere")
    return folder


def test_what_decides_an_answer_is_in_the_digest(model_dir: Path) -> None:
    first = job_digest(TransformJob(), None, settings(model_dir))
    others = [
        job_digest(TransformJob(accept="text/csv"), None, settings(model_dir)),
        job_digest(TransformJob(split_type="line"), None, settings(model_dir)),
        job_digest(TransformJob(), "http://one", settings(model_dir)),
        job_digest(TransformJob(), "http://two", settings(model_dir)),
        job_digest(TransformJob(), None, settings(model_dir, csv_header="skip")),
        job_digest(TransformJob(), None, settings(model_dir, default_accept="text/csv")),
    ]
    (model_dir / "sub" / "data").write_bytes(b"even more")
    others.append(job_digest(TransformJob(), None, settings(model_dir)))
    os.utime(model_dir / "model.onnx", ns=(1, 1))
    others.append(job_digest(TransformJob(), None, settings(model_dir)))

    assert len({first, *others}) == 1 + len(others)


def test_what_decides_only_the_speed_is_not(model_dir: Path) -> None:
    fast = TransformJob(timeout_s=1, max_retries=0, max_concurrent=9)

    assert job_digest(fast, None, settings(model_dir, slots=3, port=1)) == job_digest(
        TransformJob(), None, settings(model_dir)
    )


def test_a_huge_folder_is_not_read_to_its_end(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_record, "_MAX_FILES", 1)
    before = job_digest(TransformJob(), None, settings(model_dir))
    (model_dir / "sub" / "data").write_bytes(b"beyond the first file")

    assert job_digest(TransformJob(), None, settings(model_dir)) == before


def test_a_record_refuses_another_job(tmp_path: Path) -> None:
    record = JobRecord(tmp_path)
    record.check("one")
    record.write("one", {})
    record.check("one")
    with pytest.raises(SettingsError, match="another model or of other options"):
        record.check("two")
    record.write("two", {})
    record.check("two")
    assert [path.name for path in tmp_path.iterdir()] == [".onnx-serve-transform.job"]


def test_a_record_knows_the_bad_records_of_its_files(tmp_path: Path) -> None:
    """The last word counts; half a line, which a killed run leaves, says nothing."""
    record = JobRecord(tmp_path)
    assert record.bad_records({"a"}) == {}
    record.write("one", {"a": 1, "b\n\u2028": 2})
    record.add("c", 3)
    record.add("a", 4)
    with (tmp_path / ".onnx-serve-transform.job").open("a") as file:
        file.write('[1]\n{"file": "c", "bad_records": "many"}\n{"file": "a", "bad')

    record.check("one")
    assert record.bad_records({"a", "b\n\u2028", "d"}) == {"a": 4, "b\n\u2028": 2}
    record.write("one", {"a": 4})
    assert record.bad_records({"a", "c"}) == {"a": 4}
