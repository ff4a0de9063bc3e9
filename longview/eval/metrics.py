"""Prompts, answer parsing and scoring of the published benchmarks. Pure functions: no model, no torch.

    TextVQA     normalise both sides, then agree with ten people       `vqa_normalised`, `vqa_scores`, `textvqa_key`
    MMMU        find the option, or the value, in what was said        `mmmu_prompt`, `mmmu_choice`, `mmmu_values`
    MathVista   a hint by kind of answer, and the nearest option       `mathvista_query`, `mathvista_normalised`
    POPE        yes or no                                              `says_yes`, `pope_scores`

They follow the scripts that produced the papers' numbers, also where those are odd, so that numbers are comparable.
`tests/golden/mgm/eval.json` was made by such scripts.
"""

from __future__ import annotations

import ast
import contextlib
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

# ── TextVQA ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_SHORT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'd "
    "I'm I've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't o'clock oughtn't shan't she'd "
    "she's should've shouldn't somebody's someone's something's that'd that's there'd there're there's they'd they'll "
    "they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
    "who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _SHORT.split()}


def vqa_normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, digits for number words, no articles, less punctuation."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches or joined else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = (_NUMBERS.get(word, word) for word in cleaned.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_scores(people: Sequence[str]) -> dict[str, float]:
    """What each answer is worth by those of (ten) people: full marks where three of the others agree."""
    given = [vqa_normalised(answer) for answer in people]
    return {
        answer: sum(min(1.0, (given.count(answer) - (other == answer)) / 3) for other in given) / len(given)
        for answer in set(given)
    }


def vqa_score(answer: str, people: Sequence[str]) -> float:
    """What one answer is worth, from 0 to 1."""
    return vqa_scores(people).get(vqa_normalised(answer), 0.0)


def textvqa_key(prompt: str) -> str:
    """The question in a prompt, by which TextVQA's files know it."""
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        assert found is not None, prompt
        return found[1].lower()
    first, *rest = prompt.split("\n")
    return (rest[0] if first.startswith("Reference OCR token:") else first).lower()


# ── MMMU ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_NUMBER = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
_BEFORE_A_VALUE = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def mmmu_prompt(sample: Mapping[str, Any]) -> str:
    """A sample's question with its options, and how it is to be answered."""
    options = ast.literal_eval(sample["options"]) if isinstance(sample["options"], str) else sample["options"]
    if sample["question_type"] == "open":
        return f"{sample['question']}\nAnswer the question using a single word or phrase."
    listed = "".join(f"({letter}) {option}\n" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    return f"{sample['question']}\n{listed}\nAnswer with the option's letter from the given choices directly."


def mmmu_choice(answer: str, options: Mapping[str, str], chance: random.Random) -> str:
    """The letter that an answer chooses: in brackets, alone, or by the option's words; the last one; else by chance."""
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form in ("({})", " {} "):
        found = [letter for letter in options if form.format(letter) in answer]
        if found:
            return max(found, key=lambda letter: answer.rfind(form.format(letter)))
    said = answer.lower()
    if len(answer.split()) > 5:
        found = [letter for letter, words in options.items() if words.lower() in said]
        if found:
            return max(found, key=lambda letter: said.rfind(options[letter].lower()))
    return chance.choice(list(options))


def mmmu_values(answer: str) -> set[str | float]:
    """What an open answer may mean: the ends of its lines behind words like "is", and all numbers in them."""
    answer = answer.strip().strip(".").lower()
    *lines, last = answer.split("\n")
    ends = [_behind(line, _BEFORE_A_VALUE) for line in lines] + [_behind(last, (*_BEFORE_A_VALUE, "="))]
    said = [end for end in ends if end and end not in ":,.!?;'"] or [answer]
    numbers = [number for end in said for pattern in _NUMBER for number in re.findall(pattern, end)]
    return {value for text in (*said, *numbers) for value in _values(text)}


def _behind(line: str, marks: Sequence[str]) -> str | None:
    """The shortest end of a line that stands behind one of the marks."""
    ends = [line.split(mark)[-1].strip() for mark in marks if mark in line]
    return min(ends, key=len) if ends else None


def _values(text: str) -> list[str | float]:
    """A text as numbers and words are compared; a lone letter only where it stands apart."""
    text = text.strip()
    with contextlib.suppress(ValueError):
        return [round(float(text.replace(",", "")), 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_is_right(answer: str, gold: str | Sequence[str]) -> bool:
    """Whether an open answer means (one of) the right one(s)."""
    right = [value for text in ([gold] if isinstance(gold, str) else gold) for value in _values(text)]
    return any(
        any(isinstance(value, str) and value in meant for value in right) if isinstance(meant, str) else meant in right
        for meant in mmmu_values(answer)
    )


# ── MathVista ────────────────────────────────────────────────────────────────────────────────────────────────────────

_DECIMALS = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}


def mathvista_query(problem: Mapping[str, Any]) -> str:
    """A problem as it is put: a hint by the kind of answer, the question with its unit, and the choices."""
    if problem["question_type"] == "multi_choice":
        hint = "and provide the correct option letter, e.g., A, B, C, D, at the end."
    else:
        kind, result, example = {
            "integer": ("an integer answer", "value", "1, 2, 3"),
            "list": ("a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"),
            "float": (
                f"a floating-point number with {_DECIMALS.get(problem['precision'], _DECIMALS[2])[0]}",
                "value",
                _DECIMALS.get(problem["precision"], _DECIMALS[2])[1],
            ),
        }[problem["answer_type"]]
        hint = f"requiring {kind} and provide the final {result}, e.g., {example}, at the end."
    unit = f" (Unit: {problem['unit']})" if problem.get("unit") else ""
    lines = [f"Hint: Please answer the question {hint}", f"Question: {problem['question']}{unit}"]
    if problem.get("choices"):
        options = zip(string.ascii_uppercase, problem["choices"], strict=False)
        lines += ["Choices:", *(f"({letter}) {choice}" for letter, choice in options)]
    return "\n".join(lines)


def mathvista_normalised(
    found: str, choices: Sequence[str] | None, question_type: str, answer_type: str, precision: int | None
) -> str | None:
    """What was found in an answer, in the form of the right one; None where it has none."""
    found = found.strip()
    if question_type == "multi_choice":
        assert choices
        letter = re.search(r"\(([a-zA-Z])\)", found)
        name = (letter[1] if letter else found).upper()
        letters = string.ascii_uppercase[: len(choices)]
        if len(name) == 1 and name in letters:
            return choices[letters.index(name)]
        return min(choices, key=lambda choice: distance(found, choice))
    with contextlib.suppress(ValueError, OverflowError):
        if answer_type == "integer":
            return str(int(float(found)))
        if answer_type == "float":
            return str(round(float(found), int(precision or 0)))
        return found
    return None


def distance(one: str, other: str) -> int:
    """How many letters must be written, struck out or changed to make one text the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row = row, [number]
        for column, wanted in enumerate(other, 1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != wanted)))
    return row[-1]


# ── POPE ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def says_yes(answer: str) -> bool:
    """Whether the first sentence of an answer has no word of denial in it."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def pope_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of yes."""
    pairs = [(says_yes(answer), label != "no") for answer, label in zip(answers, labels, strict=True)]
    right, wrong = pairs.count((True, True)), pairs.count((True, False))
    missed, denied = pairs.count((False, True)), pairs.count((False, False))
    precision, recall = right / max(1, right + wrong), right / max(1, right + missed)
    return {
        "accuracy": (right + denied) / max(1, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "yes": (right + wrong) / max(1, len(pairs)),
    }


# ── texts ──

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """The words of a text, lower case; of Chinese, Japanese and Korean each character."""
    return _WORDS.findall(text.lower())


def rouge_l(answer: str, truth: str) -> float:
    """Rouge-L (Lin 2004): the F1 of the longest common subsequence of words, from 0 to 1."""
    mine, theirs = words(answer), words(truth)
    if not mine or not theirs:
        return 0.0
    row = [0] * (len(theirs) + 1)
    for word in mine:
        before = 0
        for column, wanted in enumerate(theirs, 1):
            diagonal, before = before, row[column]
            row[column] = diagonal + 1 if word == wanted else max(row[column], row[column - 1])
    common = row[-1]
    precision, recall = common / len(mine), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def anls(answer: str, truths: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity (arXiv 1905.13648) with the nearest truth; below the threshold nothing."""
    said = " ".join(answer.strip().lower().split())
    best = 0.0
    for truth in truths:
        wanted = " ".join(truth.strip().lower().split())
        longest = max(len(said), len(wanted))
        best = max(best, 1 - distance(said, wanted) / longest if longest else 1.0)
    return best if best >= threshold else 0.0


def gqa_words(answer: str) -> str:
    """What mPLUG-Owl3's authors compare of an answer to a question of GQA.

    Before the first mark; behind the first "is ", "are ", "a ", "an ", "the ", each up to the next of its kind, also
    where these end a longer word; before " of".
    """
    said = re.split("[.,!]", answer.strip(), maxsplit=1)[0].lower()
    for word in ("is ", "are ", "a ", "an ", "the "):
        pieces = said.split(word)
        said = pieces[1] if len(pieces) > 1 else said
    return said.partition(" of")[0].strip()


def owl3_short(answer: str) -> str:
    """What mPLUG-Owl3's authors compare of an answer to POPE and VizWiz: up to the first full stop or comma."""
    return re.split("[.,]", answer.strip(), maxsplit=1)[0].strip()


def gqa_is_right(answer: str, truth: str) -> bool:
    """GQA's rule: the same words but for case and a final full stop."""
    return answer.strip().rstrip(".").lower() == truth.strip().lower()


def ocrbench_is_right(answer: str, truths: Sequence[str], category: str) -> bool:
    """OCRBench's rule: a truth stands in the answer; of handwritten formulas whatever the spaces."""
    if "Handwritten Mathematical Expression" in category:
        said = answer.strip().replace("\n", " ").replace(" ", "")
        return any(truth.strip().replace("\n", " ").replace(" ", "") in said for truth in truths)
    said = answer.lower().strip().replace("\n", " ")
    return any(truth.lower().strip().replace("\n", " ") in said for truth in truths)
