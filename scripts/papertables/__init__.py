"""The tables of scripts/reproduce.py."""
