"""Batch jobs over files: ``onnx-serve transform``, with Batch Transform's semantics where they are asked for."""
