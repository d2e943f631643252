"""Two-sided bounds of the norm of one linear map, with the evidence that proves the upper one."""

from lipscope.operator_norm.enclosure import Enclosure, enclose, lower_bound

__all__ = ["Enclosure", "enclose", "lower_bound"]
