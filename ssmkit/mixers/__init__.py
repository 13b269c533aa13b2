"""Mixers: the layers of a model, under the cache protocol."""
