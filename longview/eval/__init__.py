"""Measured, then said: accuracy on tasks whose answers are known."""
