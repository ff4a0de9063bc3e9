// The buttons of the frames that were shown. What is pressed stays in the page until the question is asked again; see shown.py.
const frames = (section) => [...section.querySelectorAll("li[data-index]")];
const pressed = (frame, name) => frame.querySelector(name).getAttribute("aria-pressed") === "true";
const numbers = (list) => list.map((frame) => Number(frame.dataset.index));

function count() {
  const line = element.querySelector("[data-count]");
  if (!line) return;
  const all = [...element.querySelectorAll("li[data-index]")];
  const left = all.filter((frame) => !pressed(frame, ".lv-drop")).length;
  line.textContent = left === all.length ? "" : `${left} of ${all.length} frames are left.`;
  element.querySelector(".lv-ask").disabled = [...element.querySelectorAll('section[data-kind="video"]')].some(
    (section) => frames(section).every((frame) => pressed(frame, ".lv-drop")));
}

function groups() {
  const found = [];
  for (const pair of (element.querySelector(".lv-media").dataset.models || "").split("\n")) {
    const [model, shown] = pair.split("=");
    for (const section of element.querySelectorAll('section[data-kind="video"]')) {
      if (section.dataset.model !== shown) continue;
      const left = frames(section).filter((frame) => !pressed(frame, ".lv-drop"));
      const pinned = left.filter((frame) => pressed(frame, ".lv-pin"));
      found.push({ model, medium: Number(section.dataset.medium), frames: numbers(left), pinned: numbers(pinned) });
    }
  }
  return found;
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".lv-pin, .lv-drop")) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    const frame = button.closest("li");
    if (on) frame.querySelector(button.matches(".lv-pin") ? ".lv-drop" : ".lv-pin").setAttribute("aria-pressed", "false");
    frame.classList.toggle("lv-dropped", pressed(frame, ".lv-drop"));
    count();
  } else if (button.matches(".lv-ask")) {
    trigger("again", { groups: groups() });
  } else if (button.matches(".lv-anew")) {
    trigger("anew", { groups: groups() });
  }
});
watch("value", count);
