"""Tests; a package, so that no other installed `tests` takes its place."""
