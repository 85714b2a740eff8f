from onnx_serve.codecs import table


def test_no_media_type_means_two_formats() -> None:
    names = [name for codec in table.TABLE for name in codec.media_types]

    assert sorted(set(names)) == sorted(names)
    assert all(name == name.lower() for name in names)


def test_pytorchs_tensors_are_npy() -> None:
    """The SageMaker SDK's TorchTensorSerializer writes an .npy file and calls it tensor/pt."""
    assert table.BY_MEDIA_TYPE["tensor/pt"] is table.NPY


def test_requests_only_formats_are_not_offered_for_answers() -> None:
    assert {codec.media_types[0] for codec in table.TABLE if codec.encode is None} == {
        "text/libsvm",
        "application/x-image",
    }
