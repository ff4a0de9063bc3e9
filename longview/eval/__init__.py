"""Evaluation: accuracy on tasks with known answers, contact sheets, and the numbers of model cards."""
