"""Model files before onnxruntime opens them: found in a folder, read, and checked."""
