"""Removes from a site-packages folder what a server of ONNX models never opens; for the image's build only.

``python3 trim.py FOLDER`` prints what each rule freed. The build fails if a rule for a package that is there
matches nothing: a new version of the package has moved it.
"""

import shutil
import sys
from pathlib import Path

# (package, pattern below site-packages, why nothing misses it)
RULES = (
    ("numpy", "numpy/**/tests", "NumPy's tests"),
    ("numpy", "numpy/_core/include", "headers, for extensions that are compiled against NumPy"),
    ("numpy", "numpy/_core/lib", "static libraries, for the same"),
    ("numpy", "numpy/random/lib", "the same"),
    ("numpy", "numpy/f2py", "the compiler of Fortran extensions"),
    ("numpy", "numpy/**/*.py[xi]*", "types and Cython sources"),
    ("numpy", "numpy/**/*.pxd", "declarations for Cython"),
    ("pyarrow", "pyarrow/tests", "Arrow's tests"),
    ("pyarrow", "pyarrow/_pyarrow_cpp_tests*", "Arrow's tests"),
    ("pyarrow", "pyarrow/include", "headers, for extensions that are compiled against Arrow"),
    ("pyarrow", "pyarrow/includes", "the same for Cython"),
    ("pyarrow", "pyarrow/src", "sources of the C++ bindings"),
    ("pyarrow", "pyarrow/*.p[xy][dix]", "declarations and sources for Cython"),
    ("pyarrow", "pyarrow/libarrow_flight.so*", "Flight, a network protocol"),
    ("pyarrow", "pyarrow/libarrow_python_flight.so*", "Flight"),
    ("pyarrow", "pyarrow/_flight.*", "Flight"),
    ("pyarrow", "pyarrow/flight.py", "Flight"),
    ("pyarrow", "pyarrow/libarrow_s3.so*", "the client of S3: the platform downloads models and data"),
    ("pyarrow", "pyarrow/_s3fs.*", "the client of S3"),
    ("pyarrow", "pyarrow/_substrait.*", "query plans (libarrow_substrait.so itself is linked by all of Arrow)"),
    ("pyarrow", "pyarrow/libarrow_python.so", "a copy of libarrow_python.so.NNNN, for linkers"),
    ("pyarrow", "pyarrow/libarrow_python.so.*.*", "the same"),
    ("pyarrow", "pyarrow/libarrow_python_parquet_encryption.so", "the same"),
    ("pyarrow", "pyarrow/libarrow_python_parquet_encryption.so.*.*", "the same"),
    ("onnxruntime", "onnxruntime/capi/libonnxruntime.so*", "the C library; Python's module holds a copy of its own"),
    ("onnxruntime", "onnxruntime/transformers", "tools for models, at build time"),
    ("onnxruntime", "onnxruntime/quantization", "the same"),
    ("onnxruntime", "onnxruntime/tools", "the same"),
    ("onnxruntime", "onnxruntime/datasets", "samples"),
    ("simdjson", "simdjson/*.h", "sources of the extension"),
    ("simdjson", "simdjson/*.cpp", "sources of the extension"),
    ("simdjson", "simdjson/*.p[xy][dx]", "sources of the extension"),
    ("PIL", "PIL/_avif.*", "AVIF, a format that the server does not take"),
    ("PIL", "pillow.libs/libavif*", "AVIF"),
    ("PIL", "PIL/_imagingft.*", "fonts: nothing is drawn"),
    ("PIL", "pillow.libs/libfreetype*", "fonts"),
    ("PIL", "pillow.libs/libharfbuzz*", "fonts"),
    ("PIL", "pillow.libs/libpng16*", "fonts; Pillow reads PNG by itself"),
    ("PIL", "pillow.libs/libbrotli*", "fonts"),
    ("falcon", "falcon/bench", "Falcon's benchmarks"),
    ("falcon", "falcon/**/*.pyx", "sources of the extension"),
    ("nvidia", "nvidia/*/include", "headers"),
    ("nvidia", "nvidia/*/lib/*.a", "static libraries"),
)  # fmt: skip


def main(site_packages: Path) -> int:
    """Applies the rules; returns the exit code."""
    stale = 0
    for package, pattern, _ in RULES:
        if not (site_packages / package).is_dir():
            continue
        # A folder and what is in it may both match.
        found = [path for path in sorted(site_packages.glob(pattern)) if path.exists()]
        freed = sum(map(_size, found))
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        print(f"{freed / 1e6:7.1f} MB  {pattern}")
        if not found and package != "nvidia":
            print(f"trim.py: {pattern} matches nothing any more", file=sys.stderr)
            stale = 1
    return stale


def _size(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in inside if not file.is_dir())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
