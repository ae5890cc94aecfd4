"""The model folder, and what turns it and an image into a verdict: NumPy, OpenCV and ONNX Runtime, no torch."""

import os

# Official builds of ONNX Runtime report their use unless told otherwise before they are imported
# (github.com/microsoft/onnxruntime, docs/Privacy.md). A line PC reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
