"""A search for good values of a run's keys, by the holdout."""
