"""The paper's two networks, and the files that hold their weights."""
