"""Texts and ids: tokenizers of every published kind."""
