"""Training in several processes: starting them, gathering values, sharded weights."""
