"""What the page of attention does in the browser, and how it looks."""

STYLE = """
#legend { font-size: .9rem; min-height: 1.5em; } #here { min-height: 3em; font-size: .9rem; }
#shares td:last-child { width: 40%; text-align: left; }
#map { overflow: auto; } #map svg { display: block; max-width: 100%; height: auto; }
#map rect { fill: var(--hot); stroke: var(--line); stroke-width: .5px; cursor: pointer; pointer-events: all; }
#map rect.now { stroke: var(--ring); stroke-width: 2.5px; } #map rect:hover { stroke: var(--ink); stroke-width: 1.5px; }
#map text { font: 10px system-ui, sans-serif; fill: var(--soft); }
"""

SCRIPT = r"""
(() => {
  const data = JSON.parse(document.getElementById("data").textContent), $ = (id) => document.getElementById(id);
  const query = $("query"), slider = $("layer"), head = $("head"), without = $("without"), kind = $("kind");
  const unpack = (one) => one && { bits: one.bits, values: numbers(one.values, one.bits) };
  const mean = unpack(data.mean), single = unpack(data.single), count = data.queries.length, kinds = data.names.length;
  const shares = { mean: numbers(data.shares.mean, 16), single: numbers(data.shares.single, 16) };
  const groups = data.groups.map((one) => ({ ...one, values: { bits: 16, values: numbers(one.values, 16) },
    shares: numbers(one.shares, 16) }));
  let shown = null, values = [];

  const share = (code, bits) => code === 0 ? 0 : Math.exp(-Math.log(data.least) * (code - 2 ** bits + 1) / (2 ** bits - 2));
  const group = () => head.value.startsWith("group") ? groups[Number(head.value.slice(5))] : null;
  const own = () => head.value === "mean" || group() ? null : Number(head.value);
  const sinks = () => !data.sinks ? [] : group() ? group().sinks : data.sinks[slider.valueAsNumber];

  function looked(l, q) {  // the share of every key
    const from = group() ? group().values : own() === null ? mean : single;
    const start = group() ? q : own() === null ? l * count + q : (l * data.heads.length + own()) * count + q;
    return Array.from(from.values.subarray(start * data.length, (start + 1) * data.length), (x) => share(x, from.bits));
  }

  function summed(l, h, q) {  // the share of every kind of keys; h is null for the mean
    const from = h === null ? shares.mean : shares.single, start = h === null ? l * count + q
      : (l * data.heads.length + h) * count + q;
    return Array.from(from.subarray(start * kinds, (start + 1) * kinds), (x) => x / 65535);
  }

  function name() {
    const one = group();
    if (one) return `${one.name} (mean of ${one.heads.join(", ")})`;
    return `layer ${data.layers[slider.valueAsNumber]}, ` + (own() === null ? "mean of the heads"
      : `head ${data.heads[own()]}`);
  }

  function draw() {
    const l = slider.valueAsNumber, q = Number(query.value), marked = new Set(sinks()), whole = group();
    $("told").textContent = `layer ${data.layers[l]}`;
    slider.setAttribute("aria-valuetext", `layer ${data.layers[l]}`);
    slider.disabled = whole !== null;
    values = looked(l, q);
    const out = without !== null && without.checked, scaled = data.media.length ? data.media : [...values.keys()];
    const most = Math.max(1e-12, ...scaled.filter((n) => !(out && marked.has(n))).map((n) => values[n]));
    paint(stage, values.map((x, n) => out && marked.has(n) ? 0 : x / most));
    say(stage, values.map((x, n) => percent(x) + (marked.has(n) ? ", a sink" : "")));
    mark(stage, "crossed", [...marked]);
    mark(stage, "ringed", [data.queries[q].position]);
    $("legend").textContent = `${name()}: the full colour is ${percent(most)} on one position`
      + (out ? ", sinks (crossed) left out" : marked.size ? "; sinks are crossed" : "");
    $("what").textContent = `${data.queries[q].told} looks at`;
    table(whole ? Array.from(whole.shares.subarray(q * kinds, (q + 1) * kinds), (x) => x / 65535) : summed(l, own(), q));
    map(q);
    tell();
  }

  function table(sums) {
    const first = make("tr"), counts = [...data.counts, sinks().length];
    ["", "positions", "share", ""].forEach((text) => first.append(make("th", text)));
    $("shares").replaceChildren(first, ...data.names.map((text, n) => {
      const line = make("tr"), bar = make("span", undefined, "bar"), last = make("td");
      bar.style.width = `${(100 * sums[n]).toFixed(1)}%`;
      last.append(bar);
      const told = text === "sinks" ? "of these, sinks" : text;
      line.append(make("td", told), make("td", counts[n]), make("td", percent(sums[n])), last);
      return line;
    }));
  }

  function map(q) {  // which layers and heads look at a kind of keys
    const n = Number(kind.value), tall = data.layers.length, wide = data.heads.length, side = 14, left = 42;
    const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), all = [];
    for (let l = 0; l < tall; l++) for (let h = 0; h < wide; h++) all.push([l, h, summed(l, h, q)[n]]);
    const most = Math.max(1e-9, ...all.map(([, , value]) => value));
    const best = all.reduce((one, other) => other[2] > one[2] ? other : one);
    const where = `layer ${data.layers[best[0]]}, head ${data.heads[best[1]]}`;
    $("map-told").textContent = `Share of ${data.names[n]} by layer and head: at most ${percent(most)}`
      + `, at ${where}`;
    svg.setAttribute("viewBox", `0 0 ${left + wide * side + 2} ${tall * side + 32}`);
    svg.setAttribute("width", Math.min(1.5 * (left + wide * side), 640));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", $("map-told").textContent);
    const add = (tag, about, text) => {
      const one = document.createElementNS(space, tag);
      Object.entries(about).forEach(([key, value]) => one.setAttribute(key, value));
      if (text !== undefined) one.textContent = text;
      svg.append(one);
      return one;
    };
    let now = null;
    all.forEach(([l, h, value]) => {
      const y = (tall - 1 - l) * side + 1, one = add("rect", { x: left + h * side, y, width: side, height: side,
        "fill-opacity": (value / most).toFixed(3) });
      if (!group() && l === slider.valueAsNumber && (own() === null || own() === h)) {
        one.classList.add("now");
        now = [...now ?? [], one];
      }
      const title = document.createElementNS(space, "title");
      title.textContent = `layer ${data.layers[l]}, head ${data.heads[h]}: ${percent(value)}`;
      one.append(title);
      one.addEventListener("click", () => {
        slider.value = l;
        head.value = single ? String(h) : "mean";
        draw();
      });
    });
    if (now) svg.append(...now);
    const every = Math.ceil(tall / 16);
    data.layers.forEach((layer, l) => l % every ? 0 : add("text", { x: left - 4, y: (tall - l) * side - 3,
      "text-anchor": "end" }, `${layer}`));
    const step = Math.ceil(wide / 16);
    for (let h = 0; h < wide; h += step) add("text", { x: left + (h + 0.5) * side, y: tall * side + 13,
      "text-anchor": "middle" }, `${data.heads[h]}`);
    const up = tall * side / 2;
    add("text", { x: left + wide * side / 2, y: tall * side + 27, "text-anchor": "middle" }, "head");
    add("text", { x: 10, y: up, "text-anchor": "middle", transform: `rotate(-90 10 ${up})` }, "layer");
    $("map").replaceChildren(svg);
  }

  function tell() {
    const here = $("here"), marked = new Set(sinks());
    const how = "Point at a position, click it, or go there with Tab and the arrow keys, for its share.";
    here.textContent = shown === null ? how
      : `${stage.about[shown]}: ${percent(values[shown] ?? 0)}${marked.has(shown) ? ", a sink" : ""}`;
  }

  function choose(position) {  // a position that is a query is then looked from
    const n = data.queries.findIndex((one) => one.position === position);
    if (n >= 0 && n !== Number(query.value)) {
      query.value = n;
      draw();
    }
  }

  function step(select, by) {
    const next = select.selectedIndex + by;
    if (next >= 0 && next < select.options.length) select.selectedIndex = next;
    draw();
  }

  data.names.forEach((text, n) => {
    const one = make("option", text);
    one.value = n;
    kind.append(one);
  });
  const stage = staged("stage", (position) => { shown = position; tell(); }, choose);
  [slider, query, head, without, kind].forEach((one) => one && one.addEventListener("input", draw));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { "+": 1, "=": 1, "-": -1 }[event.key], other = { "]": 1, "[": -1 }[event.key];
    const from = { ".": 1, ",": -1 }[event.key];
    if (by) { slider.valueAsNumber += by; draw(); }
    if (other) step(head, other);
    if (from) step(query, from);
  });
  draw();
})();
"""
