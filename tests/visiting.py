"""One person's browser on the page that `longview serve` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving import ROOT

SECONDS = 120
"""To wait for what the page does, at most: on a busy machine it is slow, and no test is about how fast it is."""
TIMES, STEADY_MS = 10, 200
EXAMPLES = ROOT / "examples"


class Visit:
    """One person's browser on the page.

    Attributes:
        requests: The addresses that it has asked for.
        mistakes: What its console complained of.
    """

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.context.set_default_timeout(SECONDS * 1000)
        self.page, self.address = self.context.new_page(), address
        self.requests: list[str] = []
        self.mistakes: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        self.page.on("console", lambda line: self.mistakes.append(line.text) if line.type == "error" else None)
        self.open()

    def open(self) -> None:
        self.page.goto(self.address)
        self.page.wait_for_selector("#lv-box [data-testid=submit-button]")

    def ask(self, text: str, *files: Path) -> None:
        """Put files into the box, then a question, and send it."""
        if files:
            self.page.locator("#lv-box input[type=file]").set_input_files([str(file) for file in files])
            self.page.wait_for_function(
                f"document.querySelectorAll('#lv-box .thumbnail-item, #lv-box .thumbnail-small').length >= {len(files)}"
            )
        self.page.locator("#lv-box textarea").fill(text)
        self.page.keyboard.press("Enter")

    def answers(self, chat: str = "#lv-chat") -> list[str]:
        """What the model has said so far."""
        return [text.strip() for text in self.page.locator(f"{chat} .bot.message").all_inner_texts()]

    def wait_for_answer(self, number: int = 1, chat: str = "#lv-chat") -> str:
        """The answer to one question, when it is complete."""
        self.page.wait_for_function(
            "([chat, number]) => (document.querySelectorAll(`${chat} .bot.message`)[number - 1]?.innerText"
            " || '…').trim() !== '…' && document.querySelector('#lv-box [data-testid=submit-button]')",
            arg=[chat, number],
        )
        return self.answers(chat)[number - 1]

    def frames(self, model: str = "") -> list[int]:
        """The numbers of the frames that are shown."""
        section = f'section[data-model="{model}"] ' if model else ""
        return [
            int(each.get_attribute("data-index"))
            for each in self.page.locator(f"#lv-frames {section}li[data-index]").all()
        ]

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def set(self, setting: str, value: str) -> None:
        """Type the value of a setting, until it stays: Gradio fills what has just been unfolded a moment later."""
        box = self.page.locator(f"#lv-set-{setting}").locator("input, textarea")
        for _ in range(TIMES):
            box.fill(value)
            self.page.wait_for_timeout(STEADY_MS)
            if box.input_value() == value:
                return
        raise AssertionError(f"{setting} does not keep {value}")
