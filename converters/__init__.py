"""Trained artifacts to model folders, at build time, with proof that both answer the same.

``python -m converters`` is the command; ``onnx-serve convert`` and ``onnx-serve package`` are the same.
From Python, each framework's module has ``convert``, whose result ``conversion.finish`` proves and writes::

    from converters import conversion, sklearn

    conversion.finish(sklearn.convert(pipeline, sample=frame), Path("model"))

Nothing is imported here: the server must never load a framework, and each framework is optional.
"""
