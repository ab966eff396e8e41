"""The embedded models and their worlds: drawing scenes, and training the small models."""
