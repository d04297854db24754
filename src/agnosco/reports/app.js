"use strict";
// Search, sorting, and the details of a class. Everything shown is in the page; nothing is loaded.

const byId = (id) => document.getElementById(id);
const grid = byId("grid");
const tiles = [...grid.children];
const search = byId("search");
const sort = byId("sort");
const dialog = byId("details");
const title = byId("details-title");
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
  byId("count").textContent = shown === tiles.length ? `${shown} classes` : `${shown} of ${tiles.length} classes`;
  byId("nothing").hidden = shown > 0;
}

function order() {
  const [key, run] = sort.value.split(" "); // a figure, and the number of its run
  const figure = (tile) => Number(tile.dataset[key].split(" ")[run ?? 0]);
  const byIndex = (a, b) => a.dataset.index - b.dataset.index;
  const compare = {
    index: byIndex,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  }[key] ?? ((a, b) => figure(b) - figure(a));
  grid.append(...tiles.sort((a, b) => compare(a, b) || byIndex(a, b)));
}

search.form.hidden = false;
search.addEventListener("input", filter);
sort.addEventListener("change", order);
search.form.addEventListener("submit", (event) => event.preventDefault());

// -- a class: one set of controls for all its maps, kept from class to class -------------------

const stage = byId("stage"); // none where maps have one stage
const raw = byId("raw");
const overs = ["xi", "where"].map(byId).filter(Boolean); // what can be laid over finished maps; some have neither

function show() {
  const last = stage ? Number(stage.max) : 0;
  const place = stage && !raw.checked ? Number(stage.value) : last; // raw is the finished map
  if (stage) {
    const name = raw.checked ? "raw" : JSON.parse(stage.dataset.names)[place];
    stage.disabled = raw.checked;
    stage.setAttribute("aria-valuetext", name);
    byId("stage-name").textContent = name;
  }
  for (const over of overs) {
    over.disabled = place < last;
    over.checked &&= !over.disabled;
  }
  for (const map of maps.children) showMap(map, place);
}

function showMap(map, place) {
  const stages = [...map.querySelectorAll(".stage-picture")];
  const own = Math.min(place, stages.length - 1); // another run may have fewer
  stages.forEach((picture, at) => (picture.hidden = raw.checked || at !== own));
  map.querySelector(".raw-picture").hidden = !raw.checked;
  map.querySelector(".shown").textContent = raw.checked ? "raw" : stages[own].dataset.stage;
  for (const over of overs) {
    const picture = map.querySelector(`.${over.id}-picture`);
    if (picture) picture.hidden = !over.checked;
  }
}

for (const control of [stage, raw, ...overs]) control?.addEventListener("input", show);

let opened; // the anchor of the class that was opened last

function open(anchor) {
  opened = anchor;
  const template = details.get(anchor);
  title.textContent = template.dataset.title;
  maps.replaceChildren(template.content.cloneNode(true));
  show();
  byId("previous").disabled = beside(-1) === undefined;
  byId("next").disabled = beside(1) === undefined;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  title.focus();
}

const here = () => location.hash.slice(1); // anchors are plain letters: nothing to decode

function beside(by) {
  const anchors = shownTiles().map(anchorOf);
  const place = anchors.indexOf(here());
  return place < 0 ? undefined : anchors[place + by]; // a class that the search hides is beside none
}

function step(by) {
  const next = beside(by);
  if (next !== undefined) location.replace(`#${next}`);
}

function follow() {
  if (details.has(here())) open(here());
  else if (dialog.open) dialog.close();
}

dialog.addEventListener("close", () => {
  if (dialog.open || here() !== opened) return; // the address leads to another class by now
  history.replaceState(null, "", location.pathname + location.search);
  byId(`tile-${opened}`)?.focus();
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => dialog.close());
window.addEventListener("hashchange", follow);
follow();

// -- what pictures are taken for: a plane with one pixel for each pair of classes ---------------

const MOST_ZOOM = 24; // pixels of the screen for a cell

function explore(plane) {
  const names = JSON.parse(plane.dataset.names);
  const image = plane.querySelector("img");
  const said = plane.querySelector("[role=status]");
  const view = plane.querySelector(".window");
  const zoom = plane.querySelector("input");
  const count = names.length;
  let values;
  let place = [0, 0]; // row and column

  function tell(row, column) {
    place = [row, column].map((at) => Math.max(0, Math.min(count - 1, at)));
    const p = (values[4 * (place[0] * count + place[1]) + 3] / 255) ** 2; // the opacity is the root of p
    said.textContent = `Pictures of ${names[place[0]]} are taken for ${names[place[1]]} with p ${p.toFixed(3)}`;
  }

  function read() {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = count;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    values = context.getImageData(0, 0, count, count).data;
    plane.hidden = false;
  }

  zoom.addEventListener("input", () => {
    const fit = view.clientWidth / count;
    const cell = fit * (Math.max(MOST_ZOOM, fit) / fit) ** (zoom.value / 100);
    const across = (view.scrollLeft + view.clientWidth / 2) / view.scrollWidth;
    const down = (view.scrollTop + view.clientHeight / 2) / view.scrollHeight;
    image.style.width = `${cell * count}px`;
    view.scrollTo(across * view.scrollWidth - view.clientWidth / 2, down * view.scrollHeight - view.clientHeight / 2);
  });
  image.addEventListener("pointermove", (event) => {
    const cell = image.clientWidth / count;
    tell(Math.floor(event.offsetY / cell), Math.floor(event.offsetX / cell));
  });
  view.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    tell(place[0] + down, place[1] + right);
  });
  image.decode().then(read);
}

document.querySelectorAll(".plane").forEach(explore);

// -- how it was made: folded away on a phone, all of it on paper --------------------------------

const abouts = document.querySelectorAll("details.about");
const unfold = (whether) => abouts.forEach((about) => (about.open = whether));
if (matchMedia("(max-width: 34rem)").matches) unfold(false);
window.addEventListener("beforeprint", () => unfold(true));
