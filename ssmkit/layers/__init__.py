"""Layers that act on each token alone: projections, embeddings, norms, stored matrices."""
