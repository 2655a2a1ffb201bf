"""The parts of the report: measurements to look up, sentences, text tables, markup and the gallery."""
