"""The type checker that runs inside the tests: every annotated function of the package, integers allowed where floats are."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
