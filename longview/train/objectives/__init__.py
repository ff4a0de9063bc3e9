"""What a stage minimises: the contract of an objective, and the objectives over a user's rows."""
