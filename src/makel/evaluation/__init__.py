"""Measuring models: metrics (NumPy only), the protocol on labelled images, and reports that open in any browser."""
