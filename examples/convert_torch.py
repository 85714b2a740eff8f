"""Trains a small network and saves it as ``.pt2`` for an image that converts and serves it.

    pip install torch==2.13.0
    python examples/convert_torch.py trained
    docker build --tag waves --build-arg ARTIFACT=trained/network.pt2 --build-arg CONVERT_TORCH=torch==2.13.0 .

run from the repository, so that the folder lies in the build context. Give the build the version that saved the
file. One row and what the network answers to it are printed; the image answers the same:

    docker run --rm -p 127.0.0.1:8080:8080 waves serve
    curl -H 'Content-Type: text/csv' --data 0.5,0.25 http://127.0.0.1:8080/invocations

docs/image.md explains the build arguments, docs/converters.md what can be converted.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn

SEED = 20240607
STEPS = 200
ROWS = 256


def train() -> nn.Module:
    """A network of two inputs that has learnt a wave."""
    torch.manual_seed(SEED)
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(STEPS):
        features = torch.rand(ROWS, 2) * 2 - 1
        expected = torch.sin(3 * features[:, :1]) * features[:, 1:]
        optimizer.zero_grad()
        nn.functional.mse_loss(network(features), expected).backward()
        optimizer.step()
    return network.eval()


def main() -> None:
    """Writes ``network.pt2``; prints one row and the network's answer to it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    network = train()
    row = torch.tensor([[0.5, 0.25]])
    # Any number of rows: the export is told which dimension counts them.
    program = torch.export.export(
        network, (torch.zeros(2, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, folder / "network.pt2")
    with torch.no_grad():
        print(json.dumps({"row": row[0].tolist(), "answer": network(row)[0].tolist()}))


if __name__ == "__main__":
    main()
