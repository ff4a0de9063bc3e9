"""What a run tells: its log, curves, answers before and after, all of it on one page."""
