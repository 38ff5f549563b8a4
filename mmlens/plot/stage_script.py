"""What the stage of a page does in the browser, and how it looks; `mmlens.plot.stage` says how a page uses it."""

from mmlens.plot.canvas import GREY

STYLE = """
:root { --hot: #d7301f; --cold: #2b6cb0; --ring: #0b6bcb; --veil: #fbfaf8; }
@media (prefers-color-scheme: dark) { :root { --hot: #ff4d2e; --cold: #4da3ff; --ring: #58b4ff; --veil: #16191c; } }
.stage { min-width: 0; } .stage figure { margin: 0 0 .7rem; min-width: 0; }
.stage > label { display: inline-flex; gap: .5rem; align-items: center; }
.zoom { width: 9rem; accent-color: var(--mark); }
.scroll { overflow: auto; max-width: 100%; max-height: 92vh; }
.drawing { display: block; height: auto; outline-offset: -2px; }
.small image { image-rendering: pixelated; }
.strip { display: flex; gap: .8rem; overflow-x: auto; } .strip figure { flex: none; }
.strip figcaption { width: 0; min-width: 100%; }
.sound .under { filter: invert(1); } @media (prefers-color-scheme: dark) { .sound .under { filter: none; } }
.axis { pointer-events: none; } .axis path { stroke: var(--soft); }
.axis text { font: max(15px, calc(11px * var(--unit, 1))) system-ui, sans-serif; fill: var(--soft);
  dominant-baseline: hanging; }
.axis .hertz { font-size: max(14px, calc(10px * var(--unit, 1))); text-anchor: end; dominant-baseline: central; }
.faded .under { opacity: .4; } @media (prefers-color-scheme: dark) { .faded .under { opacity: .55; } }
.painted .picture .under, .painted .frame .under { filter: grayscale(GREY); }
.cells rect { --own: var(--hot); fill: var(--own); fill-opacity: 0; stroke: var(--ink); stroke-opacity: .13;
  stroke-width: 1px; cursor: pointer; vector-effect: non-scaling-stroke; pointer-events: all; }
.cells .cold { --own: var(--cold); }
.picture .edged, .frame .edged { stroke: var(--own); stroke-width: 1.5px; stroke-opacity: calc(.3 + .6 * var(--strong)); }
.words text { fill: var(--ink); text-anchor: middle; dominant-baseline: central; pointer-events: none;
  font-family: system-ui, sans-serif; paint-order: stroke; stroke: var(--veil); stroke-opacity: .75;
  stroke-linejoin: round; }
.words path { fill: none; stroke: var(--ink); stroke-width: 1.6px; vector-effect: non-scaling-stroke; pointer-events: none; }
.cells .ringed { stroke: var(--ring); stroke-width: 2px; stroke-opacity: 1; }
.cells .chosen { stroke: var(--ring); stroke-width: 3.5px; stroke-opacity: 1; }
.line { display: flex; flex-wrap: wrap; gap: 2px; padding: 3px; max-height: 14rem; overflow-y: auto; }
.line .cell { position: relative; padding: 0 .35em; border: 1px solid var(--line); border-radius: 4px; font-size: .85rem;
  cursor: pointer; white-space: pre; }
.region { fill: none; stroke-width: 3; stroke-linecap: round; vector-effect: non-scaling-stroke; pointer-events: none; }
.line .ringed { border-color: var(--ring); box-shadow: inset 0 0 0 1px var(--ring); }
.line .chosen { border-color: var(--ring); box-shadow: 0 0 0 2px var(--ring); }
.line .crossed::after { content: "×"; color: var(--soft); margin-left: .25em; }
""".replace("GREY", f"{GREY:g}")

LAYOUT = """
body { max-width: 100rem; padding: 1.2rem; } h1 { font-size: 1.4rem; } p { margin: .2rem 0; }
.tools { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; margin: .7rem 0 .4rem; }
.tools input[type=range] { width: min(16rem, 50vw); accent-color: var(--mark); }
select, button, .tools input:not([type=range]) { font: inherit; font-size: .9rem; color: var(--ink);
  background: var(--ground); border: 1px solid var(--line); border-radius: 4px; padding: .1rem .4rem; }
button { cursor: pointer; } button:hover { border-color: var(--soft); }
output { min-width: 4rem; font-variant-numeric: tabular-nums; }
.view-of { display: flex; flex-wrap: wrap; gap: 1.4rem; align-items: flex-start; margin-top: .6rem; }
.main { flex: 3 1 34rem; min-width: 0; }
aside { flex: 2 1 24rem; min-width: 0; position: sticky; top: .5rem; max-height: 98vh; overflow: auto; }
aside h2 { font-size: 1.05rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
aside h3 { font-size: .95rem; margin: .8rem 0 .1rem; }
aside table { width: 100%; font-size: .85rem; } aside td, aside th { padding: .08rem .5rem .08rem 0; }
tr.now td, tr.now th { background: color-mix(in srgb, var(--ring) 16%, transparent); }
.bar { display: inline-block; height: .7em; background: var(--hot); opacity: .75; vertical-align: baseline;
  border-radius: 2px; }
"""

SCRIPT = r"""
"use strict";
function make(tag, text, name) {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (name) one.className = name;
  return one;
}

function numbers(text, bits) {  // what `packed` has packed
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new ({ 8: Uint8Array, 16: Uint16Array, 32: Uint32Array })[bits](bytes.buffer);
}

function percent(x) {
  if (x < 0.00005) return "0\u00a0%";
  return (x < 0.0995 ? Number((100 * x).toPrecision(2)) : Math.round(100 * x)) + "\u00a0%";
}

function staged(name, point, choose) {
  const root = document.getElementById(name), space = "http://www.w3.org/2000/svg";
  const about = JSON.parse(root.dataset.about);
  const stage = { root, about, length: about.length, cells: new Map(), boxes: new Map(), layers: new Map(),
    chosen: null, crosses: [] };
  let near = null;
  const tell = () => point && point(near ?? stage.chosen);
  const views = [...root.querySelectorAll("[role=listbox]")];
  for (const view of views) {
    if (view.dataset.cells) {
      for (const [position, x, y, width, height] of JSON.parse(view.dataset.cells)) {
        const rect = document.createElementNS(space, "rect");
        const given = { class: "cell", role: "option", "aria-selected": "false", x, y, width, height };
        Object.entries(given).forEach(([key, value]) => rect.setAttribute(key, value));
        rect.dataset.position = position;
        view.querySelector(".cells").append(rect);
        stage.boxes.set(position, { x, y, width, height });
        stage.layers.set(position, view.querySelector(".words"));
      }
    }
    view.querySelectorAll(".cell").forEach((cell) => {
      const position = Number(cell.dataset.position);
      cell.id = `${name}-at-${position}`;
      cell.setAttribute("aria-label", about[position]);
      stage.cells.set(position, cell);
      cell.addEventListener("mouseenter", () => { near = position; tell(); });
      cell.addEventListener("mouseleave", () => { near = null; tell(); });
      cell.addEventListener("click", () => { view.focus({ preventScroll: true }); stage.choose(position); });
    });
    view.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") stage.choose(null);
      else if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
        const own = [...view.querySelectorAll(".cell")].sort((a, b) => a.dataset.position - b.dataset.position);
        const next = beside(own, event.key);
        near = null;
        if (next) stage.choose(Number(next.dataset.position));
      } else return;
      event.preventDefault();
    });
    view.addEventListener("focus", () => active(view));
  }

  function active(view) {
    const cell = stage.chosen === null ? null : stage.cells.get(stage.chosen);
    if (cell && view.contains(cell)) view.setAttribute("aria-activedescendant", cell.id);
    else view.removeAttribute("aria-activedescendant");
  }

  function beside(own, key) {  // the nearest cell in the arrow's direction; in a line, the one before or behind
    const here = own.indexOf(stage.cells.get(stage.chosen));
    if (key === "End") return own[own.length - 1];
    if (key === "Home" || here < 0) return own[0];
    const across = key === "ArrowLeft" || key === "ArrowRight", sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
    if (across && !stage.boxes.has(stage.chosen)) return own[here + sign];
    const at = own[here].getBoundingClientRect();
    let best = null, least = Infinity;
    for (const cell of own) {
      const box = cell.getBoundingClientRect();
      const dx = box.x + box.width / 2 - at.x - at.width / 2, dy = box.y + box.height / 2 - at.y - at.height / 2;
      const along = sign * (across ? dx : dy), off = Math.abs(across ? dy : dx);
      if (along > 1 && off <= 2 * along && along + 2 * off < least) [best, least] = [cell, along + 2 * off];
    }
    return best;
  }

  stage.choose = (position) => {
    stage.chosen = position;
    stage.cells.forEach((cell, n) => {
      const own = n === position;
      if (own !== cell.classList.contains("chosen")) {
        cell.classList.toggle("chosen", own);
        cell.setAttribute("aria-selected", String(own));
        if (own && cell.parentNode.matches(".cells")) cell.parentNode.append(cell);  // its edge above its neighbours'
      }
    });
    views.forEach(active);
    tell();
    if (choose) choose(position);
  };

  const zoom = root.querySelector(".zoom"), drawings = [...root.querySelectorAll(".drawing")];
  const widths = drawings.map((one) => Number(one.getAttribute("width")));
  function resize() {
    drawings.forEach((one, n) => {
      const times = zoom.valueAsNumber, room = one.closest(".strip") ? Infinity : root.clientWidth || Infinity;
      one.setAttribute("width", Math.round(times * Math.min(widths[n], room)));
      one.style.setProperty("--unit", one.viewBox.baseVal.width / Number(one.getAttribute("width")));  // of a pixel
    });
    if (stage.written) write(stage, stage.written);
  }
  if (zoom) {
    zoom.addEventListener("input", resize);
    window.addEventListener("resize", resize);
    resize();
  }
  return stage;
}

function fade(stage) {  // the picture stands back behind colours and words; under colours it is greyer (see STYLE)
  stage.root.classList.toggle("faded", stage.root.classList.contains("painted") || Boolean(stage.written));
}

function paint(stage, values) {
  stage.root.classList.toggle("painted", values !== null);
  fade(stage);
  stage.cells.forEach((cell, position) => {
    const value = values === null ? undefined : values[position], some = Number.isFinite(value);
    const strong = some ? Math.min(Math.abs(value), 1) : 0, cold = some && value < 0;
    if (stage.boxes.has(position)) {
      cell.classList.toggle("cold", cold);
      cell.style.setProperty("--strong", strong.toFixed(3));
      cell.classList.toggle("edged", strong >= 0.1);  // a pale colour is told from the picture's by its edge
      cell.style.fillOpacity = (0.72 * strong).toFixed(3);
    } else {
      const color = `var(--${cold ? "cold" : "hot"}) ${(75 * strong).toFixed(1)}%`;
      cell.style.backgroundColor = strong ? `color-mix(in srgb, ${color}, transparent)` : "";
    }
  });
}

function write(stage, words) {
  stage.written = words;
  fade(stage);
  stage.layers.forEach((layer) => layer.querySelectorAll("text").forEach((one) => one.remove()));
  if (words === null) return;
  stage.boxes.forEach(({ x, y, width, height }, position) => {
    const word = words[position], layer = stage.layers.get(position), svg = layer.ownerSVGElement;
    if (!word) return;
    const tall = height > 2.2 * width, along = tall ? height : width, high = tall ? width : height;
    const pixel = svg.viewBox.baseVal.width / Number(svg.getAttribute("width"));
    const room = Math.min(Math.max(Math.floor(along / (4.9 * pixel)), 4), 14);  // letters that can be read
    const shown = word.length > room ? word.slice(0, room - 1) + "…" : word;
    const size = Math.min(0.72 * high, along / (0.66 * Math.max(shown.length, 5)), 15 * pixel);
    if (size < 4.5 * pixel) return;  // too small to read
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text"), [cx, cy] = [x + width / 2, y + height / 2];
    text.setAttribute("x", cx);
    text.setAttribute("y", cy);
    text.setAttribute("font-size", size);
    text.setAttribute("stroke-width", size / 5);
    if (tall) text.setAttribute("transform", `rotate(-90 ${cx} ${cy})`);
    text.textContent = shown;
    layer.append(text);
  });
}

function say(stage, words) {
  stage.cells.forEach((cell, position) => {
    const word = words[position];
    cell.setAttribute("aria-label", stage.about[position] + (word ? `: ${word}` : ""));
  });
}

function mark(stage, name, positions) {
  const own = new Set(positions);
  stage.cells.forEach((cell, position) => cell.classList.toggle(name, own.has(position)));
  if (name !== "crossed") return;
  stage.crosses.forEach((one) => one.remove());
  stage.crosses = [...own].filter((position) => stage.boxes.has(position)).map((position) => {
    const { x, y, width, height } = stage.boxes.get(position), arm = 0.6 * Math.min(width, height);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const start = `${x + (width - arm) / 2} ${y + (height - arm) / 2}`;
    path.setAttribute("d", `M${start}l${arm} ${arm}m0 ${-arm}l${-arm} ${arm}`);
    stage.layers.get(position).append(path);
    return path;
  });
}
"""
