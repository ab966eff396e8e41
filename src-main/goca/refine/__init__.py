"""Refinement of score maps: functions of maps, and of an image or a space map."""

from goca.refine.affinity import affinity

__all__ = ["affinity"]
