"""Reference classifiers, and loading a user's own."""
