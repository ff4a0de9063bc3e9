"""How answers are sampled for preferences, and which of them make a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from longview.errors import RequestError
from longview.requests import MAX_ANSWERS
from longview.settings import setting, validate

COT_PROMPT = (
    "Provide a step-by-step solution to the problem, and conclude with 'the answer is' followed by the final solution."
)
"""Source: Ovis2's model card, "cot-style input"."""

Style = Literal["direct", "cot"]
STYLES: tuple[Style, ...] = get_args(Style)
"""How a question is asked: as it stands, or with the wish for a solution step by step."""


def _count(default: int, help: str, low: int = 0) -> Any:
    return setting(default, help, low=low, high=MAX_ANSWERS, expected=f"a whole number from {low} to {MAX_ANSWERS}")


@dataclass(frozen=True)
class PreferenceSettings:
    """Answers and pairs

    Raises:
        RequestError: a value out of range, or one with which no pair can come about.
    """

    direct: int = _count(4, "Answers to each question as it stands.")
    cot: int = _count(4, "Step-by-step answers to each question.")
    cot_prompt: str = setting(COT_PROMPT, "What asks for these, on a line behind the question.")
    pairs: int = _count(1, "Pairs of one question asked in one way, at most.", 1)
    across: bool = setting(
        False, "A right step-by-step answer is chosen over a wrong direct one where no direct one is right."
    )
    true_answer: bool = setting(False, "The row's own answer is chosen where no direct one is right.")

    def __post_init__(self) -> None:
        validate(self)
        if not self.direct + self.cot:
            raise RequestError("direct and cot are 0, so that nothing would be asked; give one of them")
        if self.true_answer and not self.direct:
            raise RequestError("true_answer is about direct answers, and direct is 0; ask for some, or leave it out")
        if self.across and not (self.direct and self.cot):
            raise RequestError("across pairs step-by-step answers with direct ones; ask for both, or leave it out")
        if max(self.direct, self.cot) < 2 and not (self.true_answer or self.across):
            raise RequestError(
                "one answer makes no pair; ask for two or more of a kind, or choose the row's own (--true-answer)"
            )

    def count(self, style: Style) -> int:
        return self.direct if style == "direct" else self.cot
