"""Mixers: what a layer of a model does, under the cache protocol."""
