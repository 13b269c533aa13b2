"""Measures of how well a model predicts."""
