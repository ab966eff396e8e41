"""Other methods on the same attention: the DiffSegmentor baseline."""
