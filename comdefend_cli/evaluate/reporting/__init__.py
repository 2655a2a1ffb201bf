"""Everything that shows an evaluation: tables, charts, images and the page."""
