"""Generation: the decode loop, its rows, prompts, samplers and stored caches."""
