"""Final trainings: from an architecture to a trained, judged and measured network."""
