"""Families: one folder each, with the same file names inside. See `longview.models.families` for how one is found."""
