# mypy: disable-error-code="misc, no-any-return"
# (torch has no types where it is not installed, so that its classes and results are Any.)
"""Tiny torch modules, each with one property that a conversion must meet; importable, so that they unpickle."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvNet(nn.Module):
    """Normalises by batch statistics unless it is put in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image).softmax(1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.bottom = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        return torch.sigmoid(self.out(torch.cat([skip, self.up(torch.relu(self.bottom(skip)))], 1)))


class Lstm(nn.Module):
    """INT64[N, length] to a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.lstm(self.table(ids))
        return self.head(states[:, -1]), states


class TimeFirst(nn.Module):
    """FLOAT[length, N, 4] to FLOAT[length, N, 3], as torch has recurrent networks unless asked otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, 2, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states, last = self.gru(x)
        return {"states": states, "last": last.transpose(0, 1)}


class Encoder(nn.Module):
    """A transformer with a padding mask, averaged over what is not padded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        states = self.encoder(x, src_key_padding_mask=padding)
        weights = (~padding).unsqueeze(2).to(x.dtype)
        return (states * weights).sum(1) / weights.sum(1)


class Positions(Encoder):
    """The same, and the states themselves, on which torch's fast path differs at padded positions."""

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


class CrossAttention(nn.Module):
    """Two sequences of lengths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(query, key, key, need_weights=True)


class Bag(nn.Module):
    """INT64[N, 3] of a fixed width."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(12, 2)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.table(codes).flatten(1))


class TwoTowers(nn.Module):
    """Two inputs, one of a default, one keyword-only, and a number that no caller gives."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(
        self, user: Tensor, bias: Tensor | None = None, *, item: Tensor, scale: float = 2.0
    ) -> Tensor:
        score = (self.left(user) * self.right(item)).sum(1) * scale
        return score if bias is None else score + bias


class Pair(NamedTuple):
    low: Tensor
    high: Tensor


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Structured(nn.Module):
    """Answers in every structure at once; one key is an input's name, one value is None."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {
            "x": x + 1,
            "pair": Pair(x.amin(1), x.amax(1)),
            "answer": Answer(x * 2, (x, -x)),
            "none": None,
        }


class Sum(nn.Module):
    """Any number of inputs."""

    def forward(self, *terms: Tensor) -> Tensor:
        return sum(terms[1:], terms[0])


class Learned(nn.Module):
    """Takes at most 32 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions[: x.shape[1]]


class Branching(nn.Module):
    """Another answer for sequences longer than 10."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) if x.shape[1] > 10 else x.mean(1)


class ThreeRows(nn.Module):
    """Runs on three rows only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(3, 2, -1).sum(1)


class Scripted(nn.Module):
    """Control flow on values, and a dictionary; the default of ``k`` is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, k: int = 2, shift: Tensor | None = None) -> dict[str, Tensor]:
        y = self.layer(x)
        if bool(y.abs().max() > 1e6):
            y = y * 0
        if shift is not None:
            y = y + shift
        return {"scaled": y * k, "sum": y.sum(1)}


class BranchOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class LoopOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0].item())):
            x = x + 1
        return x


class Untraceable(nn.Module):
    """Leaves torch for NumPy, which no exporter follows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Bessel(nn.Module):
    """An operator that ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class ManyRows(nn.Module):
    """Another answer for more than 20 rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] > 20 else x - 1


class Steps(nn.Module):
    """As many answers as the sequence is long."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.layer(x).unbind(1))


class SumOfCodes(nn.Module):
    """Two codes that together must be in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, codes: Tensor) -> Tensor:
        return self.table(codes[:, 0] + codes[:, 1])


class LogOfDifference(nn.Module):
    """Not a number unless the first column is the larger."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x[:, 0] - x[:, 1])


class Positive(nn.Module):
    """As many answers as there are positive values."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Scalar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class Company(nn.Module):
    """Each row less the mean of all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Mean(nn.Module):
    """One row for all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


class Constant(nn.Module):
    """Returns whatever it was made with, beside a tensor."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x, self.value(x) if callable(self.value) else self.value


class Tied(nn.Module):
    """Two names of one weight, which safetensors stores once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Wide(nn.Module):
    """The names of a perceptron, and other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


class Power(nn.Module):
    def forward(self, x: Tensor, exponent: int) -> Tensor:
        return x**exponent


class ScriptedBranch(nn.Module):
    """Another answer where all rows together are large."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        if bool(x.sum() > 0):
            y = x - x.mean(0)
        return y


class First(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0]


class Nested(nn.Module):
    """Takes a dictionary and a number, as exported programs can."""

    def forward(self, pair: dict[str, Tensor], power: int, *, shift: Tensor) -> Tensor:
        return pair["a"] ** power + pair["b"] + shift


def not_a_module() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("no weights here")
