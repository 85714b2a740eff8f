"""The image's sources, as far as they can be judged without an engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
INSTRUCTIONS = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
VARIANTS = ("cpu", "gpu", "gpu-cuda13")


def locked(name: str) -> dict[str, str]:
    """Versions by package, as the image's Python 3.13 gets them; every one of them carries hashes."""
    found = {}
    text = (REPOSITORY / f"requirements/{name}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            match = re.match(r"([a-z0-9._-]+)==(\S+)\s*(?:;\s*(.*?))?\s+--hash=sha256:", line)
            assert match, line
            if "< '3.1" not in (match[3] or ""):
                found[match[1]] = match[2]
    return found


def test_old_builders_can_read_it() -> None:
    """Docker 20.10 knows none of these, and would fetch a frontend for a syntax line."""
    assert not re.search(r"(?im)^#\s*syntax\s*=", DOCKERFILE)
    assert "<<" not in INSTRUCTIONS
    assert "--link" not in INSTRUCTIONS
    assert "--chmod" not in INSTRUCTIONS


def test_every_variant_has_a_stage_and_a_lock() -> None:
    named = re.findall(
        r"^FROM \S+ AS variant-must-be-cpu-gpu-or-gpu-cuda13\.\.\.not-(\S+)$", DOCKERFILE, re.MULTILINE
    )

    assert tuple(named) == VARIANTS
    for variant in VARIANTS:
        assert locked(variant)


def test_variants_differ_in_onnxruntime_and_cuda_alone() -> None:
    """The variant gpu keeps to CUDA 12, which is as far as Batch Transform's drivers go."""
    cpu, gpu, cuda13 = map(locked, VARIANTS)
    shared = {name: version for name, version in cpu.items() if name != "onnxruntime"}

    for variant in (gpu, cuda13):
        assert shared.items() <= variant.items()
        assert all(name.startswith(("onnxruntime-gpu", "nvidia-")) for name in set(variant) - set(shared))
    assert gpu["onnxruntime-gpu"].startswith("1.26.")
    assert {name for name in gpu if name.startswith("nvidia-")} == {
        f"nvidia-{part}-cu12"
        for part in ("cublas", "cuda-nvrtc", "cuda-runtime", "cudnn", "cufft", "curand", "nvjitlink")
    }
    assert cuda13["nvidia-cuda-runtime"].startswith("13.")
    assert "nvidia-cudnn-cu13" in cuda13


@pytest.mark.parametrize("page", ["image.md", "sagemaker.md"])
def test_links_of_the_pages(page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")]

    assert links
    assert [link for link in links if not (REPOSITORY / "docs" / link).exists()] == []


def test_page_and_image_agree_on_variables() -> None:
    page = (REPOSITORY / "docs/image.md").read_text()
    variables = re.findall(r"^ {4}([A-Z_]+=\S+?)(?: \\)?$", DOCKERFILE, re.MULTILINE)

    assert len(variables) > 5
    assert [variable for variable in variables if variable not in page] == []


def test_build_excludes_nothing_that_it_copies() -> None:
    """Each source of a COPY from the context exists, and no line of .dockerignore hides it."""
    ignored = {
        line
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    }
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
        if "$" not in source
    ]

    assert len(sources) > 5
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert source.split("/")[0] not in ignored, source


@pytest.mark.parametrize(
    ("tool", "files"),
    [
        pytest.param("hadolint", ["Dockerfile"], id="hadolint"),
        pytest.param("shellcheck", ["tests/image/with_engine.sh", "docker/healthcheck"], id="shellcheck"),
    ],
)
def test_linter(tool: str, files: list[str]) -> None:
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not installed: pip install {tool}-{'bin' if tool == 'hadolint' else 'py'}")
    done = subprocess.run(
        [program, *files], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_without_engine_and_root_one_line_says_why() -> None:
    """As a user who has neither, whoever runs the test."""
    as_user = ["setpriv", "--reuid=65534"] if os.geteuid() == 0 else []
    if as_user and not shutil.which(as_user[0]):
        pytest.skip("root cannot become a user without setpriv (util-linux)")
    with (REPOSITORY / "tests/image/with_engine.sh").open() as script:
        done = subprocess.run(
            [*as_user, "bash", "-s", "touch", "/nowhere/file"],
            stdin=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", "DOCKER": "/nonexistent/docker"},
        )

    assert done.returncode == 0
    assert done.stderr == "skipped: no Docker engine answers, and only root can start one\n"
