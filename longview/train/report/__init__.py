"""What a run reports: its log, curves, answers before and after, all of it on one page."""
