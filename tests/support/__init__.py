"""Shared by the tests: tiny models of each family, the original's random draws, the committed golden facts."""
