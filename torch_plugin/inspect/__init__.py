"""What became of a model, for people: reports, profiles, dumps, progress, and what Lutra needs of a machine."""
