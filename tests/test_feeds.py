import numpy as np

from codec_laws import signature
from onnx_serve import feeds
from onnx_serve.tensors import RowAxis, conform


def test_every_guess_conforms() -> None:
    model = signature(
        ("image", "float", ["N", "c", "h", "w"]),
        ("tokens", "int64", ["N", "seq_len"]),
        ("mask", "bool", ["N", "seq_len"]),
        ("text", "string", ["N", 2]),
    )

    guesses = list(feeds.guesses(model, 2))
    assert len(guesses) > 3
    for feed in guesses:
        conform(feed, model)
        assert feed["image"].shape[:2] == (2, 3)
        assert feed["tokens"].shape == feed["mask"].shape
        assert set(np.unique(feed["tokens"])) <= {0, 1}
        assert all(isinstance(text, str) and text.isascii() for text in feed["text"].ravel())


def test_without_free_dimensions_there_is_one_guess_a_choice_of_integers() -> None:
    assert len(list(feeds.guesses(signature(("x", "float", ["N", 4])), 2))) == 1
    assert len(list(feeds.guesses(signature(("x", "int32", ["N", 4])), 2))) == 2


def test_rows_differ_and_seeds_decide() -> None:
    model = signature(("x", "float", ["N", 4]))

    [feed], [same], [other] = (list(feeds.guesses(model, 3, seed=seed)) for seed in (0, 0, 1))
    assert len(np.unique(feed["x"], axis=0)) == 3
    np.testing.assert_array_equal(feed["x"], same["x"])
    assert not np.array_equal(feed["x"], other["x"])


def test_fixed_rows_and_size_limit() -> None:
    fixed = signature(("x", "float16", [5, 2]), row_axis=RowAxis.FIXED, fixed_rows=5)

    assert next(feeds.guesses(fixed, 2))["x"].shape == (5, 2)
    assert list(feeds.guesses(signature(("x", "double", ["N", 1 << 24])), 2)) == []


def test_length_of_a_rank_4_input_follows_its_name() -> None:
    model = signature(("cache", "float", ["N", 4, "past_len", 16]))

    assert next(feeds.guesses(model, 2))["cache"].shape == (2, 4, 128, 16)
