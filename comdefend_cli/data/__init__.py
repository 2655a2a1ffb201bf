"""Images to train and to measure on, in their official formats or from folders."""
