"""Files: atomic writes, and bounded reading of text, YAML and JSON from outside."""
