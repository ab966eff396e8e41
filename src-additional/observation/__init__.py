"""How a score came about: what is recorded in one forward, the numbers, and their figure."""
