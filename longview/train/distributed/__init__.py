"""Training in several processes: starting them, what they tell one another, weights held in shares."""
