"""Image files to arrays and back: orientation, alpha, colour profiles, depth, formats."""
