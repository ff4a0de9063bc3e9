"""How the authors put a benchmark's questions: an item → texts and media, in order. Pure functions.

The names say whose they are: `owl3_…` as in mPLUG-Owl3's evaluation programs, `ovis2_…` as VLMEvalKit asks Ovis2,
`mgm_…` as MGM's. The apostrophe of mPLUG-Owl3's suffix is U+2019, as published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from longview.eval.items import LETTERS, Item, Shown
from longview.eval.metrics import mathvista_query, mmmu_prompt

OWL3_LETTER = "Answer with the option’s letter from the given choices directly."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
SHORT = "Answer the question using a single word or phrase."
Parts = Sequence["str | Shown"]


def lettered(item: Item, form: str = "{}. {}") -> str:
    """The options, a line each."""
    return "\n".join(form.format(letter, option) for letter, option in zip(LETTERS, item.options, strict=False))


def owl3_mmbench(item: Item) -> Parts:
    """MMBench, English and Chinese."""
    head = f"Context: {item.hint or 'N/A'}\nQuestion: {item.question}\nOptions: {lettered(item)}\n"
    return [*item.shown, head + OWL3_LETTER]


def with_letters(item: Item, suffix: str = LETTER) -> Parts:
    """Hint, question and options a line each, and how to answer, in English; Ovis2 and MGM."""
    text = "\n".join(filter(None, [item.hint, item.question, lettered(item), suffix]))
    return [*on_lines(item), text]


def with_letters_cn(item: Item) -> Parts:
    """The same, and how to answer in Chinese; MGM."""
    return with_letters(item, LETTER_CN)


def numbered(item: Item) -> Parts:
    """As `longview.messages.ask` puts a question: one medium on a line before it, several with their numbers."""
    if len(item.shown) < 2:
        return [*item.shown, f"\n{item.question}" if item.shown else item.question]
    parts: list[str | Shown] = []
    for number, medium in enumerate(item.shown, 1):
        parts += [f"{medium.kind.capitalize()} {number}: ", medium, "\n"]
    return [*parts, item.question]


# ── short answers ──


def owl3_short(item: Item) -> Parts:
    """VQAv2, OK-VQA, TextVQA, GQA, POPE."""
    return [*item.shown, f"{item.question} {SHORT}"]


def with_short(item: Item) -> Parts:
    """A question on the line behind the picture, and how to answer on the next: LLaVA's form, MGM's and Ovis2's."""
    return [*on_lines(item), f"{item.question}\n{SHORT}"]


def mgm_textvqa(item: Item) -> Parts:
    """TextVQA with the words that OCR found, as in LLaVA's question file."""
    tokens = ", ".join(item.facts.get("ocr_tokens", ()))
    found = f"\nReference OCR token: {tokens}" if tokens else ""
    return [*on_lines(item), f"{item.question}{found}\n{SHORT}"]


def mgm_mme(item: Item) -> Parts:
    """MME's question without its own "Please answer yes or no."."""
    question = item.question.replace("Please answer yes or no.", "").rstrip()
    return [*on_lines(item), f"{question}\n{SHORT}"]


def on_lines(item: Item) -> list[str | Shown]:
    """The media, a line each."""
    return [part for shown in item.shown for part in (shown, "\n")]


UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def owl3_vizwiz(item: Item) -> Parts:
    """VizWiz."""
    return [*item.shown, f"{item.question} {UNANSWERABLE} {SHORT}"]


def with_unanswerable(item: Item) -> Parts:
    """VizWiz in LLaVA's form."""
    return [*on_lines(item), f"{item.question}\n{UNANSWERABLE}\n{SHORT}"]


def plain(item: Item) -> Parts:
    """The question on the line behind the picture, and nothing else: MM-Vet, OCRBench."""
    return [*on_lines(item), item.question]


# ── several pictures ──


def owl3_choice(item: Item) -> Parts:
    """AI2D."""
    return [*on_lines(item), f"Question: {item.question}\nOptions:\n{lettered(item)}\n{OWL3_LETTER}"]


def owl3_nlvr2(item: Item) -> Parts:
    """NLVR2."""
    left, right = item.shown
    question = f"\n{item.question}\nyes or no? Answer the question using a single word."
    return ["Left image: ", left, " Right image: ", right, question]


def owl3_qbench2(item: Item) -> Parts:
    """Q-Bench2."""
    first, second = item.shown
    text = f"\nQuestion: {item.question}\nOptions: {lettered(item)}\n{OWL3_LETTER}"
    return ["Image 1: ", first, "\nImage 2: ", second, text]


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_PAIRED = "\nPlease select the correct paired scientific diagram from four given images. "


def owl3_interleave(item: Item) -> Parts:
    """LLaVA-NeXT-Interleave-Bench: every <image> with its number, and a suffix where the question has none."""
    text, dataset = item.question, item.facts.get("dataset", "")
    if dataset == "SciVerse":
        text = text.replace(LETTER, _PAIRED + LETTER)
    elif item.facts.get("choice") and dataset not in ("Mantis", "MathVerse"):
        text = f"{text}\n{OWL3_LETTER}"
    return placed(text, item.shown, "the {ordinal} image: " if dataset == "BLINK" else "Image {number}: ")


def placed(text: str, shown: Sequence[Shown], name: str = "") -> Parts:
    """A text with media in the place of its <image>, each behind its name; what is left over stands before it."""
    pieces = text.split("<image>")
    before = list(shown[: max(0, len(shown) - len(pieces) + 1)])
    parts: list[str | Shown] = [part for medium in before for part in (medium, "\n")]
    rest = shown[len(before) :]
    for number, piece in enumerate(pieces, 1):
        parts += [piece] if piece else []
        if number <= len(rest):
            ordinal = _ORDINALS[min(number, len(_ORDINALS)) - 1]
            parts += [f"{name.format(number=number, ordinal=ordinal)}"] if name else []
            parts += [rest[number - 1], " "] if name else [rest[number - 1]]
    return parts


def own_parts(item: Item) -> Parts:
    """Messages as they were written."""
    return item.facts.get("parts") or plain(item)


def own_choice(item: Item) -> Parts:
    """A multiple choice with <image 1>, …, where its question names them; how to answer in the question's language."""
    suffix = LETTER_CN if re.search("[\u4e00-\u9fff]", item.question) else LETTER
    unnamed, parts = _interleaved(item, suffix if item.options else SHORT)
    before = [part for shown in unnamed for part in (shown, "\n")]
    return item.facts.get("parts") or [*before, *(part for part in parts if part)]


# ── MMMU, MathVista ──

CAREFUL_STEPS = "Provide a step-by-step solution to the problem carefully."
STEPS = (
    "Provide a step-by-step solution to the problem, and conclude with 'the answer is' followed by the final solution."
)


def mgm_mmmu(item: Item) -> Parts:
    """The first picture before the question, in which <image 1> stays as it is."""
    return [*item.shown[:1], "\n" if item.shown else "", mmmu_prompt(item.facts["sample"])]


def ovis2_mmmu(item: Item) -> Parts:
    """Every picture in its place in the question and the options; nothing behind a question without options."""
    return _on_lines_of_their_own(item, LETTER if item.options else "")


def ovis2_mmmu_steps(item: Item) -> Parts:
    """The same in steps, where there are options."""
    return _on_lines_of_their_own(item, STEPS if item.options else "")


def _interleaved(item: Item, suffix: str) -> tuple[list[str | Shown], list[str | Shown]]:
    """The media that the text does not name, and the text with the others in their places; pieces may be empty."""
    text = "\n".join(filter(None, [item.hint, item.question, lettered(item), suffix]))
    parts: list[str | Shown] = []
    for number, piece in enumerate(re.split(r"<image (\d+)>", text)):
        if number % 2 == 0:
            parts.append(piece)
        elif int(piece) <= len(item.shown):
            parts.append(item.shown[int(piece) - 1])
    named = {part.name for part in parts if isinstance(part, Shown)}
    return [shown for shown in item.shown if shown.name not in named], parts


def _on_lines_of_their_own(item: Item, suffix: str) -> Parts:
    """Media and what stands between them, a line each."""
    unnamed, parts = _interleaved(item, suffix)
    lines: list[str | Shown] = []
    text = ""
    for part in (*unnamed, *parts):
        if isinstance(part, Shown):
            lines += [text, part] if text else [part]
            text = "\n"
        else:
            text += f"{part.strip()}\n"
    return [*lines, text.removesuffix("\n")]


def mathvista(item: Item) -> Parts:
    """The query with its hint behind the picture."""
    return [*on_lines(item), mathvista_query(item.facts["problem"])]


def ovis2_mathvista_steps(item: Item) -> Parts:
    """The query, to be solved in steps."""
    return [*on_lines(item), f"{mathvista_query(item.facts['problem'])}\n{STEPS}"]


def ovis2_mmvet_steps(item: Item) -> Parts:
    """MM-Vet's question, to be solved in steps."""
    return [*on_lines(item), f"{item.question}\n{CAREFUL_STEPS}"]


def ovis2_mmstar_steps(item: Item) -> Parts:
    """MMStar's question, to be solved in steps."""
    return with_letters(item, STEPS)


def ovis2_hallusion_34b(item: Item) -> Parts:
    """HallusionBench as the model of 34B is asked."""
    return [*on_lines(item), f"{item.question} Please answer yes or no.\n{SHORT}"]


def distractor(item: Item) -> Parts:
    """mPLUG-Owl3's distractor resistance; the world's questions stand as its models know several pictures."""
    if not item.options:
        lines = (part for number, shown in enumerate(item.shown, 1) for part in (f"Image {number}: ", shown, "\n"))
        return [*lines, item.question]
    parts: list[str | Shown] = []
    for number, shown in enumerate(item.shown, 1):
        parts += [f"{' ' if parts else ''}Image {number}: ", shown]
    return [*parts, f". {item.question}\nOptions: {lettered(item)}\n{OWL3_LETTER}"]
