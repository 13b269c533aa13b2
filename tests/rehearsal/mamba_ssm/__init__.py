"""A stand-in for mamba_ssm, which needs a GPU: the same model in NumPy, one token after the other."""
