"""Where images lie and go: a folder of this machine, or an fsspec URL, by one set of methods."""
