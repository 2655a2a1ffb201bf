"""Training of the purifier, of classifiers, and of the networks of other defences."""
