"""A user's rows: read in any spelling, from any source, mixed into one stream of samples, put into batches."""
