"""Parts of scripts/scaling_study.py."""
