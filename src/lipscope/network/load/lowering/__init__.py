"""The vocabulary that importers speak: each method adds the nodes of one framework operation.

An importer walks its source graph and keeps for every name a `Ref` (a tensor that depends on the input) or a numpy
array (a constant). It sets `layer` before each operation, so that nodes carry the user's names. At least one operand
of a method is a `Ref`; what only reads constants is folded by the importer with its own framework.
"""

from __future__ import annotations

from lipscope.network.load.lowering.layers import Lowering
from lipscope.network.load.lowering.rearranging import Operand, Ref, stored

__all__ = ["Lowering", "Operand", "Ref", "stored"]
