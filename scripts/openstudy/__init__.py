"""Parts of scripts/study_open.py."""
