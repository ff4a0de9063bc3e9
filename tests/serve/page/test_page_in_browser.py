"""The page, driven by a browser: what somebody does with it, and what they see."""

from __future__ import annotations

import json
import zipfile

import httpx
import pytest
from samples import tiny_painter
from serving import data_uri, eventually, running
from visiting import EXAMPLES, SECONDS, Visit

# a step of its own: a browser, a server and two models beside other tests are too much for two cores
pytestmark = pytest.mark.browser


def test_a_picture_is_asked_about_and_the_answer_is_right(visit):
    visit.ask("What colour is the circle?", EXAMPLES / "shapes.jpg")
    assert visit.wait_for_answer() == "red"
    visit.ask("What colour is the star?")
    assert visit.wait_for_answer(2) == "blue"
    assert visit.mistakes == []


def test_an_example_works_at_once_and_nothing_is_asked_of_other_hosts(visit):
    visit.page.get_by_role("button", name="Which way does the triangle move?").click()
    assert visit.wait_for_answer() == "right"
    assert {request for request in visit.requests if not request.startswith((visit.address, "data:", "blob:"))} == set()
    played = visit.page.evaluate(
        "new Promise(done => { const film = document.querySelector('#lv-chat video');"
        " film.readyState ? done(film.duration) : film.onloadedmetadata = () => done(film.duration) })"
    )
    assert played == 8


def test_frames_are_dropped_and_the_question_asked_again_about_the_others(visit, with_page):
    visit.ask("Which way does the triangle move?", EXAMPLES / "clip.mp4")
    visit.wait_for_answer()
    visit.page.wait_for_selector("#lv-frames li")
    before = visit.frames()
    assert len(before) == 8
    assert visit.page.locator("#lv-frames li b").first.inner_text() == "0:00.0"
    visit.page.get_by_role("button", name="Drop the frame at 0:06.0").click()
    drop = visit.page.get_by_role("button", name="Drop the frame at 0:07.0")
    drop.focus()
    visit.page.keyboard.press("Space")
    assert visit.page.get_by_text("6 of 8 frames are left.").is_visible()
    visit.page.get_by_role("button", name="Ask again with these frames").click()
    visit.page.wait_for_function("document.querySelectorAll('#lv-frames li').length === 6")
    left = before[:6]
    assert visit.frames() == left
    answer = visit.wait_for_answer()
    assert kept(visit)["turns"][0]["answers"]["demo-owl3"]["frames"][0]["indices"] == left  # of its receipt
    film = {"video_url": {"url": data_uri("clip.mp4", "video/mp4")}, "longview": {"indices": left}}
    question = [{"role": "user", "content": [film, {"type": "text", "text": "\nWhich way does the triangle move?"}]}]
    reply = with_page.client().chat.completions.create(model="demo-owl3", messages=question)
    assert reply.choices[0].message.content == answer


def test_a_pinned_frame_stays_when_frames_are_chosen_anew(visit):
    visit.ask("Which way does the triangle move?", EXAMPLES / "clip.mp4")
    visit.page.wait_for_selector("#lv-frames li")
    visit.wait_for_answer()
    visit.page.get_by_role("button", name="Pin the frame at 0:05.0").click()
    visit.tab("Settings")
    visit.set("frames", "2")
    visit.tab("Frames")
    visit.page.get_by_role("button", name="Choose anew").click()
    visit.page.wait_for_function("document.querySelectorAll('#lv-frames li').length === 3")
    assert 20 in visit.frames()
    visit.wait_for_answer()
    assert kept(visit)["turns"][0]["answers"]["demo-owl3"]["frames"][0]["indices"] == visit.frames()


def test_frames_chosen_by_the_question_come_with_their_relevance(visit):
    visit.page.get_by_role("button", name="Where is the heart?").click()
    assert visit.wait_for_answer() == "bottom"
    visit.page.wait_for_selector("#lv-frames .lv-curve circle")
    assert len(visit.frames()) == visit.page.locator("#lv-frames .lv-curve circle").count() == 4
    assert "demo" in visit.page.locator("#lv-model input").input_value()


def test_two_models_answer_the_same_question_side_by_side(visit):
    choose(visit, "#lv-beside", "demo-ovis2")
    visit.ask("What colour is the circle?", EXAMPLES / "shapes.jpg")
    assert visit.wait_for_answer() == "red"
    assert visit.wait_for_answer(chat="#lv-chat-beside") == "red"
    left, right = (visit.page.locator(chat).bounding_box() for chat in ("#lv-chat", "#lv-chat-beside"))
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    assert set(kept(visit)["turns"][0]["answers"]) == {"demo-owl3", "demo-ovis2"}


def test_what_an_answer_rests_on_is_found_out_when_it_is_asked_for(visit, with_page):
    choose(visit, "#lv-beside", "demo-ovis2")
    visit.ask("Which way does the triangle move?", EXAMPLES / "clip.mp4")
    answers = [visit.wait_for_answer(), visit.wait_for_answer(chat="#lv-chat-beside")]
    visit.tab("Evidence")
    assert visit.page.locator("iframe.lv-evidence").count() == 0
    before = ended_requests(with_page)
    visit.page.get_by_role("button", name="What the last answer rests on").click()
    found = visit.page.frame_locator("iframe.lv-evidence")
    found.locator("article").nth(1).wait_for()
    assert ended_requests(with_page) > before
    assert [text.split("\n")[0] for text in found.locator("article h2").all_inner_texts()] == answers
    assert found.locator("article").first.locator(".card").count() == 8
    assert found.locator(".verdict").first.inner_text().startswith("The answer ")
    found.get_by_role("radio").first.press("ArrowRight")
    assert found.get_by_role("radio").nth(1).get_attribute("aria-checked") == "true"
    with visit.context.expect_page() as opened:
        visit.page.get_by_role("link", name="Open in a tab of its own").click()
    assert opened.value.locator("article").count() == 2
    assert visit.mistakes == []
    visit.ask("What shape is it?")
    visit.wait_for_answer(2)
    assert visit.page.locator("iframe.lv-evidence").count() == 0, "it was about another answer"


def test_a_file_that_is_no_picture_is_told_and_the_question_is_kept(visit, tmp_path):
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    visit.ask("What is it?", wrong)
    told = visit.page.locator(".toast-body")
    told.wait_for()
    assert "notes.png" in told.inner_text()
    assert visit.page.locator("#lv-box textarea").input_value() == "What is it?"
    assert visit.answers() == []
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((EXAMPLES / "shapes.jpg").read_bytes()[:900])
    visit.ask("What is it?", broken)
    assert "Not answered:" in visit.wait_for_answer()
    visit.ask("What colour is the circle?", EXAMPLES / "shapes.jpg")
    assert visit.wait_for_answer(2) == "red"


def test_an_answer_is_stopped_and_what_was_said_stays(visit):
    visit.tab("Settings")
    visit.set("max_tokens", "3000")
    visit.page.get_by_role("button", name="More about the answer").click()
    visit.set("min_tokens", "2999")
    visit.ask("What colour is the circle?", EXAMPLES / "shapes.jpg")
    visit.page.wait_for_function("(document.querySelector('#lv-chat .bot.message')?.innerText || '').length > 20")
    visit.page.get_by_role("button", name="Stop").click()
    said = visit.wait_for_answer()
    assert said.endswith("stopped")
    answer = kept(visit)["turns"][0]["answers"]["demo-owl3"]
    assert answer["ended"] == "stopped"
    assert answer["text"] in said
    visit.page.reload()
    visit.page.wait_for_selector("#lv-chat .bot.message")
    assert visit.answers()[0].endswith("stopped")


def test_a_tab_that_is_closed_ends_what_is_computed_for_it(browser, with_page):
    leaving = Visit(browser, with_page.address)
    leaving.tab("Settings")
    leaving.set("max_tokens", "3000")
    leaving.page.get_by_role("button", name="More about the answer").click()
    leaving.set("min_tokens", "2999")
    leaving.ask("What colour is the circle?", EXAMPLES / "shapes.jpg")
    assert eventually(lambda: running_requests(with_page) == 1, SECONDS)
    leaving.context.close()
    assert eventually(lambda: running_requests(with_page) == 0, 5)


def test_the_history_survives_a_reload_and_an_earlier_chat_is_opened_again(visit):
    visit.ask("Which way does the triangle move?", EXAMPLES / "clip.mp4")
    visit.wait_for_answer()
    visit.page.get_by_role("button", name="New chat").click()
    visit.page.wait_for_selector("#lv-chat .example")
    visit.ask("What colour is the star?", EXAMPLES / "shapes.jpg")
    visit.wait_for_answer()
    visit.open()
    visit.page.wait_for_selector("#lv-chat .bot.message")
    assert visit.answers() == ["blue"]
    visit.tab("Chats")
    visit.page.get_by_label("Which way does the triangle move?").click()
    visit.page.wait_for_selector("#lv-chat video")
    assert visit.answers() == ["right"]
    visit.tab("Frames")
    visit.page.wait_for_selector("#lv-frames li[data-index]")
    assert len(visit.frames()) == 8


def test_a_question_is_edited_taken_back_and_answered_again(visit, with_page):
    visit.ask("What colour is the circle?", EXAMPLES / "shapes.jpg")
    assert visit.wait_for_answer() == "red"
    visit.page.locator("#lv-chat").get_by_role("button", name="Edit").first.click()
    visit.page.locator("#lv-chat textarea").fill("What colour is the star?")
    visit.page.locator("#lv-chat").get_by_role("button", name="Submit").first.click()
    visit.page.wait_for_function("document.querySelector('#lv-chat .bot.message').innerText.trim() === 'blue'")
    visit.wait_for_answer()
    before = ended_requests(with_page)
    visit.page.locator("#lv-chat").get_by_role("button", name="Retry").first.click()
    assert eventually(lambda: ended_requests(with_page) > before, SECONDS)
    assert visit.wait_for_answer() == "blue"
    visit.page.locator("#lv-chat").get_by_role("button", name="Undo").first.click()
    visit.page.wait_for_selector("#lv-chat .example")
    assert visit.page.locator("#lv-box textarea").input_value() == "What colour is the star?"
    visit.page.locator("#lv-box textarea").press("Enter")
    assert visit.wait_for_answer() == "blue"  # its picture came back, too


def test_a_saved_conversation_replays_to_the_same_answers_elsewhere(visit, browser, with_page, tmp_path):
    choose(visit, "#lv-beside", "demo-ovis2")
    visit.tab("Settings")
    visit.set("temperature", "1.5")
    visit.ask("What happens?", EXAMPLES / "clip.mp4")
    visit.wait_for_answer()
    visit.wait_for_answer(chat="#lv-chat-beside")
    visit.tab("Chats")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Save as a file").click()
    place = tmp_path / "chat.zip"
    download.value.save_as(place)
    with zipfile.ZipFile(place) as archive:
        assert sorted(archive.namelist()) == ["conversation.json", "media/1-clip.mp4"]
        saved = json.loads(archive.read("conversation.json"))
        assert archive.read("media/1-clip.mp4") == (EXAMPLES / "clip.mp4").read_bytes()
    assert saved["conversation"]["turns"][0]["settings"]["temperature"] == 1.5
    other = Visit(browser, with_page.address)
    try:
        other.tab("Chats")
        other.page.locator("#lv-right input[type=file]").set_input_files(str(place))
        other.page.get_by_text("Opened.").wait_for()
        assert (other.answers(), other.answers("#lv-chat-beside")) == (
            visit.answers(),
            visit.answers("#lv-chat-beside"),
        )
        other.page.get_by_role("button", name="Ask everything again").click()
        other.page.get_by_text("2 of 2 answers are the same.").wait_for()
    finally:
        other.context.close()


@pytest.mark.parametrize("height", [900, 720])
def test_a_laptop_shows_the_chat_and_its_box_without_scrolling(browser, with_page, height):
    laptop = Visit(browser, with_page.address, viewport={"width": 1280, "height": height})
    try:
        box = laptop.page.locator("#lv-box").bounding_box()
        assert height - 40 < box["y"] + box["height"] <= height - 10
        assert laptop.page.evaluate("document.documentElement.scrollHeight") <= height
        laptop.tab("Settings")
        laptop.page.get_by_role("button", name="More about the answer").click()
        laptop.page.locator("#lv-set-regex").wait_for()
        laptop.page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        assert laptop.page.evaluate("window.scrollY") > 100
        box = laptop.page.locator("#lv-box").bounding_box()
        assert 0 < box["y"] < box["y"] + box["height"] <= height, "the chat scrolls away with the settings"
    finally:
        laptop.context.close()


def test_a_phone_shows_all_of_it_in_dark_too(browser, with_page):
    phone = Visit(
        browser,
        with_page.address,
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
        has_touch=True,
        is_mobile=True,
    )
    try:
        assert phone.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        phone.page.get_by_role("button", name="Which way does the triangle move?").tap()
        assert phone.wait_for_answer() == "right"
        phone.page.wait_for_selector("#lv-frames li")
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
        for each in phone.page.locator("#lv-frames li").all():
            box = each.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            assert box["width"] >= 90
        box = phone.page.locator("#lv-box").bounding_box()
        assert box["width"] >= 340
    finally:
        phone.context.close()


def test_an_answer_s_picture_is_painted_into_the_chat(browser, tmp_path):
    painter = str(tiny_painter(tmp_path / "painter"))
    with running("--model", "demo-mgm", "--gen-model", painter, "--gen-steps", "1", page=True) as painting:
        visit = Visit(browser, painting.address)
        visit.tab("Settings")
        visit.page.locator("#lv-set-gen input").check()
        visit.page.get_by_role("button", name="More about the answer").click()
        visit.set("regex", "<h>a red cat</h>")
        visit.ask("Draw a cat")
        assert "a red cat" in visit.wait_for_answer()
        painted = "document.querySelector('#lv-chat .bot img[alt=\"drawing.png\"]')"
        visit.page.wait_for_function(f"{painted}?.naturalWidth === 64")
        visit.page.reload()
        visit.page.wait_for_selector("#lv-chat .bot img")
        visit.context.close()


def test_the_control_for_drawing_is_left_out_where_no_model_draws(visit):
    visit.tab("Settings")
    visit.page.locator("#lv-set-ocr").wait_for()
    assert visit.page.locator("#lv-set-gen").count() == 0


def test_the_page_is_used_by_keyboard_alone(visit):
    reached = []
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        name = visit.page.evaluate(
            "(e => e.getAttribute('aria-label') || e.innerText || e.placeholder || e.tagName)(document.activeElement)"
        )
        reached.append(" ".join(name.split()))
    for wanted in ("Model", "New chat", "Upload a file", "Submit", "Frames"):
        assert any(wanted in name for name in reached), (wanted, reached)
    visit.page.locator("#lv-chat .example").nth(1).focus()
    visit.page.keyboard.press("Enter")
    assert visit.wait_for_answer() == "red"


def kept(visit: Visit) -> dict:
    """The conversation that is open, as a saved file has it."""
    visit.tab("Chats")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Save as a file").click()
    visit.tab("Frames")
    with zipfile.ZipFile(download.value.path()) as archive:
        return json.loads(archive.read("conversation.json"))["conversation"]


def metric(server, name: str) -> int:
    lines = httpx.get(f"{server.address}/metrics", timeout=SECONDS).text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(f"longview:{name}{{"))


def running_requests(server) -> int:
    return metric(server, "num_requests_running")


def ended_requests(server) -> int:
    return metric(server, "request_success_total")


def choose(visit: Visit, dropdown: str, value: str) -> None:
    visit.page.locator(f"{dropdown} input").click()
    visit.page.get_by_role("option", name=value).click()
    visit.page.locator("#lv-chat-beside").wait_for()
