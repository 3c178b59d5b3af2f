"""Tests. A package, so that none an installed library leaves behind under this name comes before it."""
