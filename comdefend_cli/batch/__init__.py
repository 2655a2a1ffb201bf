"""A folder of images into another, on one machine or many; images too large for memory in strips."""
