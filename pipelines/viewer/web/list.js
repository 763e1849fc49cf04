// The list of slides: thumbnail, prediction, quality, decision.

import * as api from "./api.js";

const list = document.getElementById("slides"), filter = document.getElementById("filter");
const rows = new Map();
let cards = [];

export const card = (slide) => cards.find((one) => one.slide_id === slide);
export const all = () => cards;
export const visible = () => cards.filter((one) => !rows.get(one.slide_id)?.hidden);

export function setUp(choose) {
  list.addEventListener("click", (event) => {
    const row = event.target.closest("li");
    if (row) choose(row.dataset.slide);
  });
  filter.addEventListener("input", narrow);
}

export function update(fresh) {
  cards = fresh;
  const names = new Set(cards.map((one) => one.slide_id));
  for (const [name, row] of rows) if (!names.has(name)) { row.remove(); rows.delete(name); }
  for (const one of cards) {
    let row = rows.get(one.slide_id);
    if (!row) {
      row = document.createElement("li");
      row.dataset.slide = one.slide_id;
      const image = document.createElement("img");
      image.loading = "lazy";
      image.alt = "";
      row.append(image, document.createElement("div"));
      rows.set(one.slide_id, row);
    }
    list.append(row);
    fill(row, one);
  }
  narrow();
}

export function mark(slide) {
  for (const [name, row] of rows) row.setAttribute("aria-current", name === slide);
  rows.get(slide)?.scrollIntoView({ block: "nearest" });
}

export function decided(slide, review) {
  const one = card(slide);
  if (!one) return;
  one.review = review;
  fill(rows.get(slide), one);
  narrow();
}

// The slide that many places further among those that are seen.
export function next(slide, step) {
  const seen = visible();
  const at = seen.findIndex((one) => one.slide_id === slide);
  if (!seen.length) return null;
  return seen[at < 0 ? 0 : Math.min(seen.length - 1, Math.max(0, at + step))].slide_id;
}

function narrow() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const one of cards) {
    const text = textOf(one);
    rows.get(one.slide_id).hidden = !words.every((word) => text.includes(word));
  }
  const reviewed = cards.filter((one) => one.review.status).length;
  const shown = visible().length;
  document.getElementById("counts").textContent =
    `${shown === cards.length ? "" : `${shown} of `}${cards.length} slides, ${reviewed} reviewed`;
}

function textOf(one) {
  const said = one.predictions.map((p) => `${p.pred} ${p.label} ${wrong(p) ? "wrong" : ""}`).join(" ");
  return `${one.slide_id} ${one.case_id} ${one.status} ${one.review.status || "unreviewed"} ${said} ${one.warning ?? ""}`.toLowerCase();
}

export const wrong = (p) => Boolean(p.label && p.pred && p.label !== p.pred);

function fill(row, one) {
  row.className = one.review.status;
  const source = api.picture(one.slide_id, "thumbnail");
  const seen = `${one.status}`; // a job that goes on makes the picture later
  if (row.dataset.seen !== seen) {
    row.dataset.seen = seen;
    row.firstElementChild.src = source;
  }
  const body = row.lastElementChild;
  body.replaceChildren(line("b", one.slide_id));
  for (const p of one.predictions.slice(0, 2)) {
    const chance = p.p[p.pred] === undefined ? "" : ` ${Number(p.p[p.pred]).toFixed(2)}`;
    body.append(line("small", `${p.pred || "not predicted"}${chance}${p.label ? ` · label ${p.label}` : ""}`, wrong(p) ? "wrong" : ""));
  }
  if (one.status !== "done") body.append(line("small", one.status === "failed" ? `failed: ${one.cause}` : one.status, one.status));
  const flaws = Object.entries(one.shares).filter(([name, share]) => name !== "tissue" && Number(share) > 0.01)
    .map(([name, share]) => `${name} ${(100 * share).toFixed(0)} %`);
  const told = [one.n_tiles ? `${one.n_tiles} tiles` : "", ...flaws].filter(Boolean).join(" · ");
  if (told) body.append(line("small", told));
}

function line(kind, text, name = "") {
  const element = document.createElement(kind);
  element.textContent = text;
  element.className = name;
  return element;
}
