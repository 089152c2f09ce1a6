"""Short trainings of candidates: settings, the training itself, and weights that are inherited."""
