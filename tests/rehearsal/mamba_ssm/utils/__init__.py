"""Generation by the stand-in."""
