"""The recipe language: schema, loading, selectors, conditions."""
