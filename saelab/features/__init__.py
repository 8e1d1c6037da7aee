"""Feature store: everything a person reads about every feature, in one SQLite file."""
