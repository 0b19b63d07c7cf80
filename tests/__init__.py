"""The tests: each docstring states a promise to a user."""
