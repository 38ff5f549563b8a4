"""What a circuit's page does in the browser, and how it looks."""

STYLE = """
:root { --for: #b2182b; --against: #2166ac; --head: #e3e9f0; --mlp: #f4e6c8; --neurons: #d5ecd8; --deepstack: #e9dcf2;
  --band: #f2f0eb; }
@media (prefers-color-scheme: dark) {
  :root { --for: #ff8370; --against: #6db3f2; --head: #35414f; --mlp: #574827; --neurons: #2c4d35; --deepstack: #46355a;
    --band: #1f2327; }
}
.tools input[type=range] { width: min(24rem, 60vw); }
.graph { flex: 0 1 auto; min-width: 0; overflow-x: auto; }
.graph svg { display: block; max-width: 100%; min-width: 26rem; height: auto; }
aside { flex: 1 1 19rem; max-width: 34rem; } aside h2 { font-size: 1.15rem; margin: .8rem 0 .2rem; }
aside h3 { margin: .8rem 0 0; } #seen { min-height: 3.1em; }
.legend { list-style: none; margin: .4rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem;
  overflow-wrap: anywhere; }
.legend svg { width: 2.2rem; height: .8rem; vertical-align: baseline; margin-right: .4rem; }
td:first-child { overflow-wrap: anywhere; }
td button { color: var(--ink); background: none; border: 0; padding: 0; text-decoration: underline; text-align: left; }
.pos { --own: var(--for); } .neg { --own: var(--against); } td.pos, td.neg { color: var(--own); }
.graph text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.graph text.soft { fill: var(--soft); } .graph text.way { fill: var(--soft); font-size: 10px; }
.band { fill: var(--band); }
.edge { fill: none; stroke: var(--own); opacity: .7; }
.edge.q { stroke-dasharray: 6 3; } .edge.k { stroke-dasharray: 2 2.5; }
.edge.off, .node.off { display: none; }
.some .edge { opacity: .07; } .some .edge.lit { opacity: .95; } .some .node { opacity: .4; } .some .node.lit { opacity: 1; }
.node { cursor: pointer; outline: none; } .node.idle { opacity: .25; }
.box { stroke: var(--line); } .ring { fill: none; stroke: var(--own); }
.head .box { fill: var(--head); } .mlp .box { fill: var(--mlp); } .neurons .box { fill: var(--neurons); }
.deepstack .box { fill: var(--deepstack); } .logits .box { fill: var(--ground); stroke: var(--soft); }
.focus { fill: none; stroke: none; }
.node:focus-visible .focus { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 5 3; }
.node[aria-pressed=true] .focus { stroke: var(--ink); stroke-width: 3; stroke-dasharray: none; }
.some .region { opacity: .25; } .some .region.lit { opacity: 1; }
"""

SCRIPT = r"""
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const graph = $("graph"), slider = $("count"), whole = $("whole"), told = $("told"), panel = $("panel");
  const boxes = [...graph.querySelectorAll(".node")], paths = [...graph.querySelectorAll(".edge")];
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(3);
  let chosen = null, near = null, at = boxes.length - 1, last = "", looked = null, pointed = null;

  function live() {  // the numbers of the edges that are shown
    let some = data.edges.map((_, n) => n).filter((n) => n < slider.valueAsNumber);
    while (whole.checked) {  // take dead ends out until there are none
      const reached = new Set(data.nodes.flatMap((one, n) => one.enters ? [n] : []));
      some.forEach((n) => data.edges[n].ends.forEach((end) => reached.add(end)));
      const going = new Set([boxes.length - 1, ...some.map((n) => data.edges[n].source)]);
      const left = some.filter((n) => reached.has(data.edges[n].source) && data.edges[n].ends.some((end) => going.has(end)));
      if (left.length === some.length) break;
      some = left;
    }
    return new Set(some);
  }

  function touches(edge, node) { return edge.source === node || edge.ends.includes(node); }

  function draw() {
    const shown = live(), active = near ?? chosen, lit = new Set([active]);
    const used = new Set([...shown].flatMap((n) => [data.edges[n].source, ...data.edges[n].ends]));
    for (const n of shown) {
      const edge = data.edges[n];
      if (active !== null && touches(edge, active)) [edge.source, ...edge.ends].forEach((node) => lit.add(node));
    }
    paths.forEach((path) => {
      const n = Number(path.dataset.edge);
      path.classList.toggle("off", !shown.has(n));
      path.classList.toggle("lit", active !== null && touches(data.edges[n], active));
    });
    boxes.forEach((box, n) => {
      box.classList.toggle("idle", !used.has(n));
      box.classList.toggle("lit", lit.has(n));
      box.setAttribute("aria-pressed", String(n === chosen));
      box.setAttribute("tabindex", n === at ? "0" : "-1");
    });
    graph.classList.toggle("some", active !== null);
    const asked = slider.valueAsNumber, plural = asked === 1 ? "" : "s";
    told.textContent = whole.checked ? `${shown.size} of the ${asked} largest edge${plural}` : `${asked} edge${plural}`;
    look(active);
    tell(shown);
  }

  function look(active) {  // the regions of a site, and where a head looks
    if (!stage) return;
    const node = active === null ? null : data.nodes[active];
    if (looked !== (node && node.heat)) {
      looked = node && node.heat;
      const shares = looked && numbers(looked.values, 8), values = [];
      if (looked) data.media.forEach((position, n) => { values[position] = shares[n] / 255; });
      paint(stage, looked && values);
    }
    stage.root.querySelectorAll(".region").forEach((one) => {
      one.classList.toggle("lit", Number(one.dataset.node) === active);
    });
    stage.root.classList.toggle("some", node !== null && node.enters);
    mark(stage, "ringed", node && node.positions ? node.positions.filter((n) => !stage.boxes.has(n)) : []);
    seen(node);
  }

  function seen(node) {
    const drawn = new Set([...stage.root.querySelectorAll(".region")].map((one) => Number(one.dataset.node)));
    const sites = data.nodes.filter((one, n) => drawn.has(n)).map((one) => one.name);
    let text = sites.length ? `outlined: ${sites.join(", ")}` : "";
    if (looked) {
      text = `${node.name}, the last position's attention: `
        + looked.masses.map(([name, mass]) => `${percent(mass)} lies on ${name}`).join(", ")
        + `; the full colour is ${percent(looked.top)} on one position`;
    }
    if (pointed !== null) {
      const own = data.nodes.filter((one) => one.positions && one.positions.includes(pointed)).map((one) => one.name);
      const share = looked ? `: ${percent(looked.top * numbers(looked.values, 8)[data.media.indexOf(pointed)] / 255)}` : "";
      text = stage.about[pointed] + (own.length ? `, of ${own.join(", ")}` : "") + share;
    }
    $("seen").textContent = text;
  }

  function row(node, way, score) {
    const line = make("tr"), first = make("td"), go = make("button", data.nodes[node].name);
    go.type = "button";
    go.addEventListener("click", () => { move(node); choose(node); });
    first.append(go);
    line.append(first, make("td", way), make("td", signed(score), score < 0 ? "neg" : "pos"));
    return line;
  }

  function table(heading, ways, rows) {
    const whole = make("table"), head = make("tr");
    ways.forEach((word) => head.append(make("th", word)));
    whole.append(head, ...rows);
    panel.append(make("h3", heading), rows.length ? whole : make("p", "none", "soft"));
  }

  function tell(shown) {
    const now = `${chosen} ${[...shown]}`;  // what has not changed is not read out again
    if (now === last) return;
    last = now;
    panel.replaceChildren();
    if (chosen === null) {
      panel.append(make("p", "Click a node, or move with Tab and the arrow keys and press Enter, for its edges.", "soft"));
      return;
    }
    const node = data.nodes[chosen], edges = [...shown].map((n) => data.edges[n]);
    panel.append(make("h2", node.name), make("p", node.about));
    if (node.effect !== null) panel.append(make("p", `All its edges, shown or not: ${signed(node.effect)}`));
    if (node.words) panel.append(make("p", "It writes: " + node.words.join(", ")));
    const into = edges.filter((edge) => edge.ends.includes(chosen)), out = edges.filter((edge) => edge.source === chosen);
    if (!node.enters) table(`${into.length} shown in`, ["from", "enters as", "score"],
      into.map((edge) => row(edge.source, edge.destination, edge.score)));
    if (chosen !== boxes.length - 1) table(`${out.length} shown out`, ["to", "enters as", "score"],
      out.flatMap((edge) => edge.ends.map((end) => row(end, edge.destination, edge.score))));
  }

  function choose(node) { chosen = node; near = null; draw(); }
  function move(node) { at = node; draw(); boxes[node].focus(); }

  function beside(node, key) {  // the next node in a row, or the nearest one in the row above or below
    const here = data.nodes[node], up = { ArrowUp: 1, ArrowDown: -1 }[key];
    const all = data.nodes.map((_, n) => n);
    if (up === undefined) {
      const own = all.filter((n) => data.nodes[n].row === here.row);
      return own[own.indexOf(node) + (key === "ArrowRight" ? 1 : -1)];
    }
    const there = all.filter((n) => data.nodes[n].row === here.row + up);
    return there.sort((a, b) => Math.abs(data.nodes[a].x - here.x) - Math.abs(data.nodes[b].x - here.x))[0];
  }

  boxes.forEach((box, n) => {
    box.addEventListener("click", () => { at = n; choose(n); });
    box.addEventListener("focus", () => { at = n; near = n; draw(); });
    box.addEventListener("blur", () => { near = null; draw(); });
    box.addEventListener("mouseenter", () => { near = n; draw(); });
    box.addEventListener("mouseleave", () => { near = null; draw(); });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") choose(n);
      else if (event.key.startsWith("Arrow")) { const next = beside(n, event.key); if (next !== undefined) move(next); }
      else return;
      event.preventDefault();
    });
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { "+": 1, "=": 1, "-": -1 }[event.key];
    if (event.key === "Escape") choose(null);
    else if (step) { slider.valueAsNumber += step; draw(); }
  });
  slider.addEventListener("input", draw);
  whole.addEventListener("change", draw);
  const stage = $("stage") && staged("stage", (position) => { pointed = position; draw(); });
  draw();
})();
"""
