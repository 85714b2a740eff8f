"""Batch Transform's agent, played against any container: ``onnx-serve rehearse``."""
