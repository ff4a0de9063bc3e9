"""Bytes in, frames out. No torch, no model: only what a picture or a video shows, when, and how large it is."""
