"""`Purifier`: its settings, tiles and noise."""
