// The maps of the token that is pointed at, or chosen; what is switched on is drawn over the pictures that are in view.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 2 : 1)} %`;
const own = document.getElementById("own");
let marked = null; // the visual word that is picked out

const views = [...document.querySelectorAll(".view")].map((element, number) => {
  const { pictures, tokens } = data.views[number];
  const by = new Map(pictures.map((picture) => [picture.number, {
    ...picture, maps: Uint8Array.from(atob(picture.maps), (letter) => letter.charCodeAt(0)) }]));
  return { element, tokens, pictures: by, chosen: 0, shown: 0, highest: 0, visible: new Set() };
});

function cells(picture, token) {
  const length = picture.cells[0] * picture.cells[1];
  return { bytes: picture.maps.subarray(token * length, (token + 1) * length), unit: picture.units[token] };
}

function highest(picture, token) {
  const { bytes, unit } = cells(picture, token);
  return bytes.reduce((most, value) => Math.max(most, value), 0) * unit;
}

function heat(canvas, picture, view) {
  const [rows, columns] = picture.cells;
  const { bytes, unit } = cells(picture, view.shown);
  const scale = (own.checked ? highest(picture, view.shown) : view.highest) || 1;
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  bytes.forEach((value, place) => image.data.set(data.ramp[Math.min(255, Math.round((255 * value * unit) / scale))], 4 * place));
  context.putImageData(image, 0, 0);
}

function scaled(canvas, picture) {
  const factor = Math.min(2, 640 / Math.max(...picture.size));
  [canvas.width, canvas.height] = picture.size.map((side) => Math.max(1, Math.round(side * factor)));
  const context = canvas.getContext("2d");
  context.scale(factor, factor);
  context.lineWidth = 1.5 / factor;
  return context;
}

const colour = (word, opacity) => `hsl(${(word * 137.508) % 360} 75% ${46 + (word % 3) * 9}% / ${opacity})`;

function words(canvas, picture) {
  if (!picture.words) return;
  const context = scaled(canvas, picture);
  let first = 0;
  const grids = picture.grids.map((grid) => ({ grid, first: (first += grid[4] * grid[5]) - grid[4] * grid[5] }));
  grids.sort((a, b) => (b.grid[2] - b.grid[0]) / b.grid[5] - (a.grid[2] - a.grid[0]) / a.grid[5]); // the finest last
  for (const { grid: [left, upper, right, lower, rows, columns, l, u, r, b], first } of grids) {
    const [wide, high] = [(right - left) / columns, (lower - upper) / rows];
    const word = (row, column) => row < 0 || column < 0 ? null : picture.words[first + row * columns + column];
    context.save();
    context.beginPath();
    context.rect(l, u, r - l, b - u);
    context.clip();
    context.clearRect(l, u, r - l, b - u);
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      const [x, y, here] = [left + column * wide, upper + row * high, word(row, column)];
      context.fillStyle = colour(here, marked === null ? 0.5 : here === marked ? 0.75 : 0.08);
      context.fillRect(x, y, wide, high);
      context.strokeStyle = "rgb(255 255 255 / .85)"; // around each group of patches
      context.beginPath();
      if (word(row - 1, column) !== here) { context.moveTo(x, y); context.lineTo(x + wide, y); }
      if (word(row, column - 1) !== here) { context.moveTo(x, y); context.lineTo(x, y + high); }
      context.stroke();
    }
    context.restore();
  }
}

function mined(canvas, picture) {
  if (!picture.mined) return;
  const context = scaled(canvas, picture);
  for (const { box: [left, upper, right, lower], weights } of picture.mined) {
    const most = Math.max(...weights.flat()), side = weights.length;
    const [wide, high] = [(right - left) / side, (lower - upper) / side];
    weights.forEach((row, down) => row.forEach((weight, across) => {
      context.fillStyle = `rgb(0 200 255 / ${(0.7 * weight) / most})`;
      context.fillRect(left + across * wide, upper + down * high, wide, high);
    }));
    context.strokeStyle = "rgb(0 30 60 / .9)";
    context.strokeRect(left, upper, right - left, lower - upper);
  }
}

function paint(view, card) {
  const picture = view.pictures.get(Number(card.dataset.picture));
  for (const canvas of card.querySelectorAll("canvas"))
    ({ heat, words, mined })[canvas.dataset.layer](canvas, picture, view);
}

function show(view, token) {
  view.shown = token;
  const every = [...view.pictures.values()];
  view.highest = Math.max(0, ...every.map((picture) => highest(picture, token)));
  const ranked = [...every].sort((a, b) => b.shares[token] - a.shares[token]);
  const total = every.reduce((sum, picture) => sum + picture.shares[token], 0);
  const name = token ? `“${view.tokens[token - 1].trim() || "space"}”` : "Whole answer";
  view.element.querySelector(".now").textContent = ranked.length
    ? `${name}: ${percent(total)} on pictures, most on picture ${ranked[0].number} (${percent(ranked[0].shares[token])})` : name;
  for (const button of view.element.querySelectorAll(".tokens button"))
    button.classList.toggle("shown", Number(button.dataset.token) === token);
  for (const axis of view.element.querySelectorAll(".axis")) {
    const bars = [...axis.querySelectorAll("a")];
    const share = (bar) => view.pictures.get(Number(bar.dataset.picture)).shares[token];
    const most = Math.max(1e-9, ...bars.map(share));
    const up = parseFloat(getComputedStyle(axis.querySelector(".plot")).getPropertyValue("--up"));
    for (const bar of bars) bar.querySelector(".share").style.height = `${(up * share(bar)) / most}px`;
    axis.querySelector("[data-highest]").textContent = percent(most);
  }
  for (const card of view.element.querySelectorAll(".card")) {
    const share = view.pictures.get(Number(card.dataset.picture)).shares[token];
    card.querySelector(".rank").textContent = percent(share);
    const bar = card.querySelector(".part i");
    if (bar) bar.style.width = `${Math.min(100, 100 * share)}%`;
  }
  for (const card of view.visible) paint(view, card);
  document.getElementById("highest").textContent = own.checked ? "the highest cell of each"
    : views.map((each) => percent(each.highest)).join(" · ");
}

for (const view of views) {
  const strip = view.element.querySelector(".tokens"), buttons = [...strip.children];
  const choose = (place) => {
    view.chosen = (place + buttons.length) % buttons.length;
    buttons.forEach((button, number) => {
      button.setAttribute("aria-checked", String(number === view.chosen));
      button.tabIndex = number === view.chosen ? 0 : -1;
    });
    show(view, view.chosen);
  };
  strip.addEventListener("click", (event) => event.target.closest("button") && choose(buttons.indexOf(event.target.closest("button"))));
  strip.addEventListener("pointerover", (event) => {
    const button = event.target.closest("button");
    if (button && event.pointerType !== "touch") show(view, buttons.indexOf(button));
  });
  strip.addEventListener("pointerleave", () => show(view, view.chosen));
  strip.addEventListener("keydown", (event) => {
    const to = { ArrowRight: view.chosen + 1, ArrowDown: view.chosen + 1, ArrowLeft: view.chosen - 1, ArrowUp: view.chosen - 1,
      Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
    buttons[view.chosen].focus();
  });
  const seen = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    view.visible[isIntersecting ? "add" : "delete"](target);
    if (isIntersecting) paint(view, target);
  }), { rootMargin: "200px" });
  view.element.querySelectorAll(".card").forEach((card) => seen.observe(card));
  view.element.querySelectorAll(".plot a").forEach((bar) => bar.addEventListener("click", (event) => {
    const card = view.element.querySelector(`.card[data-picture="${bar.dataset.picture}"]`);
    const folded = card.closest("details");
    if (folded) folded.open = true;
    event.preventDefault();
    card.scrollIntoView({ block: "center" });
    view.element.querySelectorAll(".card.shown").forEach((each) => each.classList.remove("shown"));
    card.classList.add("shown");
  }));
  show(view, 0);
}

const again = () => views.forEach((view) => show(view, view.shown));
own.addEventListener("change", again);
window.addEventListener("beforeprint", () => views.forEach((view) => view.element.querySelectorAll(".card").forEach((card) => paint(view, card))));
for (const box of document.querySelectorAll("input[data-layer]")) {
  const set = () => document.body.classList.toggle(`show-${box.dataset.layer}`, box.checked);
  box.addEventListener("change", set);
  set();
}
for (const chip of document.querySelectorAll(".word")) {
  chip.style.setProperty("--word", colour(Number(chip.dataset.word), 1));
  chip.addEventListener("click", () => {
    marked = marked === Number(chip.dataset.word) ? null : Number(chip.dataset.word);
    document.querySelectorAll(".word").forEach((each) => each.setAttribute("aria-pressed", String(Number(each.dataset.word) === marked)));
    const box = document.querySelector('input[data-layer="words"]');
    if (marked !== null && !box.checked) box.click();
    again();
  });
}
const context = document.getElementById("ramp").getContext("2d"), image = context.createImageData(256, 1);
image.data.set(data.ramp.flat());
context.putImageData(image, 0, 0);
