"""What a stage over a user's data minimises."""
