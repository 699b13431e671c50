"""Keys and current states of facts, measured layer by layer."""
