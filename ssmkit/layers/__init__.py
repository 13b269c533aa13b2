"""Parameters and what is pointwise along the sequence: projections, embeddings, norms, stored matrices."""
