"""Families: one folder each, with the same file names inside; `longview.models.families` finds them."""
