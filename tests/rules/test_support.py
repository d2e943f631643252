"""Every kind has an answer to every question, or a written reason, and a case in the tests."""

from __future__ import annotations

import pytest

from lipscope.network.nodes import KINDS, Dense, Node
from lipscope.rules import FAMILIES, NoRule, evaluate, gain
from lipscope.rules.functions import FUNCTIONS
from lipscope.rules.support import QUESTIONS, has_rule, reason_without_rule, support_table
from rules.rule_cases import CASES, FUNCTION_NAMES


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_rule_or_reason(kind: str, question: str) -> None:
    reason = reason_without_rule(question, KINDS[kind])
    assert has_rule(question, KINDS[kind]) == (reason == ""), f"{kind} x {question}: {reason or 'no rule, no reason'}"


def test_the_walk_finds_a_gap() -> None:
    class Unknown(Node):
        pass

    assert len(FAMILIES) == 13
    assert not has_rule("evaluate", Unknown)
    assert reason_without_rule("evaluate", Unknown) == ""
    with pytest.raises(NoRule, match=r"register a rule with lipscope.rules.questions.evaluate.register\(Unknown\)"):
        evaluate(Unknown(inputs=(), shape=()))
    with pytest.raises(NoRule, match="Dense at 'fc' has no gain"):
        gain(Dense(inputs=(0,), shape=(1,), name="fc", weight=CASES["Dense"].node.weight, axis=0), "l2", None)


def test_every_kind_and_function_has_a_case() -> None:
    assert {case.node.kind for case in CASES.values()} == set(KINDS)
    assert set(FUNCTION_NAMES) == set(FUNCTIONS)
    assert set(support_table()) == set(KINDS)
