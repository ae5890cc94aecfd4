"""Signed models: OpenSSF model-signing with keys and certificates of one's own, without a network."""
