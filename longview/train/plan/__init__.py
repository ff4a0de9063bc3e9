"""What a recipe will take, before a weight is read: cost of a pass, memory and time, the dry run."""
