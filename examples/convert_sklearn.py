"""Trains a pipeline and saves it for an image that converts and serves it; no pickle is involved.

    pip install scikit-learn skops
    python examples/convert_sklearn.py trained
    docker build --tag wine --build-arg ARTIFACT=trained/pipeline.skops \
        --build-arg CONVERT_OPTIONS="--sample trained/rows.csv" .

run from the repository, so that the folder lies in the build context. The last row and what the pipeline answers
to it are printed; the image answers the same:

    docker run --rm -p 127.0.0.1:8080:8080 wine serve
    tail -n 1 trained/rows.csv | curl -H 'Content-Type: text/csv' --data-binary @- http://127.0.0.1:8080/invocations

docs/image.md explains the build arguments, docs/converters.md what can be converted.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import skops.io
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

SAMPLE_ROWS = 20


def train() -> tuple[Pipeline, np.ndarray, list[str]]:
    """A fitted pipeline, rows to prove its conversion on, and the names of their columns."""
    data = load_wine()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    pipeline.fit(data.data, data.target_names[data.target])
    return pipeline, data.data[:: len(data.data) // SAMPLE_ROWS], data.feature_names


def main() -> None:
    """Writes ``pipeline.skops`` and ``rows.csv``; prints the last row and the pipeline's answer to it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pipeline, rows, names = train()
    skops.io.dump(pipeline, folder / "pipeline.skops")
    np.savetxt(folder / "rows.csv", rows, fmt="%.17g", delimiter=",", header=",".join(names), comments="")
    row = rows[-1:]
    answer = {
        "row": row[0].tolist(),
        "label": str(pipeline.predict(row)[0]),
        "probabilities": pipeline.predict_proba(row)[0].tolist(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
