// Long tables and sheets, a page at a time: whatever has data-paged="50" shows 50 of its children. Works without a network;
// without scripts everything is shown.
"use strict";
for (const box of document.querySelectorAll("[data-paged]")) {
  const size = Number(box.dataset.paged);
  const items = Array.from(box.children);
  if (items.length <= size) continue;
  const words = items.map((item) => item.textContent.toLowerCase());
  let found = items.map((_, k) => k);
  let page = 0;
  let all = false;

  const bar = document.createElement("div");
  bar.className = "pager";
  const add = (kind, text, act) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (act) made.addEventListener("click", act);
    bar.append(made);
    return made;
  };
  const step = (by) => () => { page += by; show(); };
  const back = add("button", "‹ previous", step(-1));
  const place = add("span", "");
  const next = add("button", "next ›", step(1));
  const every = add("button", "show all", () => { all = !all; page = 0; show(); });
  const seek = document.createElement("input");
  seek.type = "search";
  seek.placeholder = "find";
  seek.setAttribute("aria-label", "show only what contains this");
  seek.addEventListener("input", () => {
    const wanted = seek.value.trim().toLowerCase();
    found = words.flatMap((text, k) => (text.includes(wanted) ? [k] : []));
    page = 0;
    show();
  });
  bar.append(seek);

  function show() {
    const last = Math.max(0, Math.ceil(found.length / size) - 1);
    page = Math.min(Math.max(page, 0), last);
    const from = all ? 0 : page * size;
    const to = all ? found.length : Math.min(from + size, found.length);
    const visible = new Set(found.slice(from, to));
    items.forEach((item, k) => { item.hidden = !visible.has(k); });
    place.textContent = found.length ? `${from + 1}–${to} of ${found.length}` : "nothing found";
    back.disabled = all || page === 0;
    next.disabled = all || page === last;
    every.textContent = all ? "by pages" : "show all";
  }
  (box.closest(".wide") ?? box).before(bar); // the bar stays where it is when its table is moved sideways
  show();
}
