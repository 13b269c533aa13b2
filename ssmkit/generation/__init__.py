"""Generation: the decode loop, its rows, prompts, requests, samplers and stored caches."""

from . import rows as rows
