"use strict";
// Search, sorting, and the details of a class. Everything shown is in the page; nothing is loaded.

const grid = document.getElementById("grid");
const tiles = [...grid.children];
const search = document.getElementById("search");
const sort = document.getElementById("sort");
const count = document.getElementById("count");
const nothing = document.getElementById("nothing");
const dialog = document.getElementById("details");
const title = document.getElementById("details-title");
const maps = dialog.querySelector(".maps");
const details = new Map(
  [...document.querySelectorAll("template[data-class]")].map((one) => [one.dataset.class, one]),
);

// -- the grid ---------------------------------------------------------------------------------

const anchorOf = (tile) => tile.firstElementChild.hash.slice(1);
const shownTiles = () => [...grid.children].filter((tile) => !tile.hidden);

function filter() {
  const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  for (const tile of tiles) {
    const { index, name } = tile.dataset;
    tile.hidden = !words.every((word) => name.includes(word) || index === word);
  }
  const shown = shownTiles().length;
  count.textContent = shown === tiles.length ? `${shown} classes` : `${shown} of ${tiles.length} classes`;
  nothing.hidden = shown > 0;
}

function order() {
  const key = sort.value;
  const byIndex = (a, b) => a.dataset.index - b.dataset.index;
  const compare = {
    index: byIndex,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  }[key] ?? ((a, b) => b.dataset[key] - a.dataset[key]);
  grid.append(...tiles.sort((a, b) => compare(a, b) || byIndex(a, b)));
}

search.addEventListener("input", filter);
sort.addEventListener("change", order);
search.form.addEventListener("submit", (event) => event.preventDefault());

// -- a class ----------------------------------------------------------------------------------

function prepare(map) {
  const slider = map.querySelector(".slider input");
  const raw = map.querySelector("input.raw");
  const xi = map.querySelector("input.xi");
  const stages = [...map.querySelectorAll(".stage-picture")];
  const rawPicture = map.querySelector(".raw-picture");
  const show = () => {
    const stage = slider ? Number(slider.value) : stages.length - 1;
    stages.forEach((picture, place) => (picture.hidden = raw.checked || place !== stage));
    rawPicture.hidden = !raw.checked;
    if (slider) {
      const name = JSON.parse(slider.dataset.names)[stage];
      map.querySelector(".slider output").textContent = name;
      slider.setAttribute("aria-valuetext", name);
      slider.disabled = raw.checked;
    }
    if (xi) map.querySelector(".xi-picture").hidden = !xi.checked;
  };
  for (const control of [slider, raw, xi]) control?.addEventListener("input", show);
  show();
}

function open(anchor) {
  const template = details.get(anchor);
  title.textContent = template.dataset.title;
  maps.replaceChildren(template.content.cloneNode(true));
  maps.querySelectorAll(".map").forEach(prepare);
  const anchors = shownTiles().map(anchorOf);
  const place = anchors.indexOf(anchor);
  document.getElementById("previous").disabled = place <= 0;
  document.getElementById("next").disabled = place < 0 || place === anchors.length - 1;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  title.focus();
}

function step(by) {
  const anchors = shownTiles().map(anchorOf);
  const next = anchors[anchors.indexOf(here()) + by];
  if (next !== undefined) location.replace(`#${next}`);
}

const here = () => decodeURIComponent(location.hash.slice(1));

function follow() {
  if (details.has(here())) open(here());
  else if (dialog.open) dialog.close();
}

dialog.addEventListener("close", () => {
  const tile = document.getElementById(`tile-${here()}`);
  if (details.has(here())) history.replaceState(null, "", location.pathname + location.search);
  tile?.focus();
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("close").addEventListener("click", () => dialog.close());
window.addEventListener("hashchange", follow);
follow();
