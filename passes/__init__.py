"""Passes: one file, one rewrite of the captured graph; ``pipeline`` holds their order."""
