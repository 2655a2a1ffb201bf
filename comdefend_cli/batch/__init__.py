"""A folder of pictures into another, on one machine or many; pictures too large for memory in strips."""
