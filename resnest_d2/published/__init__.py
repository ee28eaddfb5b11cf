"""Figures and weights that others have published, as data; none are ours."""
