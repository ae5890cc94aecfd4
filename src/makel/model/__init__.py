"""The model folder, and what turns it and an image into a verdict: NumPy, OpenCV and ONNX Runtime, no torch."""
