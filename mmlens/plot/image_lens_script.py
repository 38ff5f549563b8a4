"""What the page of a lens does in the browser, and how it looks."""

STYLE = """
#bars { display: flex; gap: 2px; height: 3.2rem; align-items: stretch; max-width: 60rem; }
#bars button { flex: 1 1 0; min-width: 0; max-width: 3rem; display: flex; flex-direction: column; justify-content: flex-end;
  padding: 0; border: 0; border-bottom: 3px solid var(--line); border-radius: 0; background: none; overflow: hidden; }
#bars button.now { border-bottom-color: var(--ring); } #bars button:hover { border-bottom-color: var(--soft); }
#bars span { display: block; background: var(--hot); opacity: .7; }
#legend { font-size: .9rem; min-height: 1.5em; } #chips { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .3rem; }
#chips button.now { border-color: var(--ring); box-shadow: 0 0 0 1px var(--ring); }
aside td { text-align: left; white-space: nowrap; } aside td.number { text-align: right; }
aside td button { padding: 0; border: 0; background: none; font-size: 1em; text-align: left; max-width: 11em;
  overflow: hidden; text-overflow: ellipsis; vertical-align: bottom; }
aside td button:hover { text-decoration: underline; }
aside td button.now { color: var(--ring); font-weight: 600; }
#panel .wide { overflow-x: auto; }
"""

SCRIPT = r"""
(() => {
  const data = JSON.parse(document.getElementById("data").textContent), $ = (id) => document.getElementById(id);
  const slider = $("layer"), shade = $("shade"), written = $("written"), typed = $("word"), panel = $("panel");
  const tokens = numbers(data.tokens, data.bits), nats = numbers(data.nats, 16), entropy = numbers(data.entropy, 16);
  const targets = data.targets.map((one) => (
    { word: one.word, nats: numbers(one.nats, 16), ranks: numbers(one.ranks, 32) }));
  const known = new Map(data.words.map((word, n) => [word, n])), k = data.k, length = data.length;
  const highest = Math.max(entropy.reduce((most, x) => Math.max(most, x), 0) / data.per.entropy, 1e-3);
  let word = null, shown = null, layer = data.layers.length - 1;

  const at = (l, n) => l * length + n;
  const chance = (x) => Math.exp(-x / data.per.nats);
  const top = (l, n) => chance(nats[at(l, n) * k]);
  const unsure = (l, n) => entropy[at(l, n)] / data.per.entropy;
  const named = (l) => /^\d+$/.test(data.layers[l]) ? `layer ${data.layers[l]}` : `the ${data.layers[l]}`;

  function reads(l, n) {  // the probability of the chosen word
    if (word.target !== null) return chance(targets[word.target].nats[at(l, n)]);
    let sum = 0;
    for (let j = at(l, n) * k; j < (at(l, n) + 1) * k; j++) if (tokens[j] === word.number) sum += chance(nats[j]);
    return sum;
  }

  function each(value) {  // the value of every position of the stream
    const found = [];
    for (let n = 0; n < length; n++) found[data.first + n] = value(layer, n);
    return found;
  }

  const mean = (l, value) => data.media.reduce((sum, n) => sum + value(l, n), 0) / data.media.length;

  function scale() {  // the largest probability of the word anywhere
    let most = 1e-9;
    data.layers.forEach((_, l) => { for (let n = 0; n < length; n++) most = Math.max(most, reads(l, n)); });
    return most;
  }

  function draw() {
    $("told").textContent = named(layer);
    slider.setAttribute("aria-valuetext", named(layer));
    const legend = $("legend"), how = shade.value;
    if (word) {
      const values = each(reads), held = data.media.filter((n) => values[data.first + n] > 0).length;
      const first = data.media.filter((n) => tokens[at(layer, n) * k] === word.number).length;
      paint(stage, values.map((x) => x / word.scale));
      legend.textContent = `“${word.text}” at ${named(layer)}: the top word at ${first} of ${data.media.length} positions`
        + (word.target === null ? `, among the ${k} top words at ${held}` : "")
        + `; the full colour is ${percent(word.scale)}`;
    } else {
      if (how === "none") paint(stage, null);
      if (how === "top") paint(stage, each(top));
      if (how === "entropy") paint(stage, each((l, n) => unsure(l, n) / highest));
      legend.textContent = { top: `${named(layer)}: colour is the top word's probability, full at 100 %`, none: named(layer),
        entropy: `${named(layer)}: colour is the entropy of the prediction, full at ${highest.toFixed(1)} nats` }[how];
    }
    const words = each((l, n) => data.words[tokens[at(l, n) * k]]);
    write(stage, written.checked ? words : null);
    say(stage, word ? each((l, n) => `${word.text} ${percent(reads(l, n))}`) : words);
    bars();
    chips();
    tell();
  }

  function bars() {
    const values = data.layers.map((_, l) => mean(l, word ? reads : top)), most = word ? Math.max(...values, 1e-9) : 1;
    $("bars-told").textContent = `probability of ${word ? `“${word.text}”` : "the top word"} by layer, mean of `
      + `${data.media.length} ${data.of}; the full height is ${percent(most)}`;
    $("bars").replaceChildren(...values.map((value, l) => {
      const one = make("button", undefined, l === layer ? "now" : ""), bar = make("span");
      one.type = "button";
      one.tabIndex = -1;
      one.title = `${named(l)}: ${word ? word.text : "the top word"} has ${percent(value)} on average over media positions`;
      bar.style.height = `${(100 * value / most).toFixed(1)}%`;
      one.append(bar);
      one.addEventListener("click", () => go(l));
      return one;
    }));
  }

  function chips() {  // the targets, and the commonest top words of the layer
    const counts = new Map();
    data.media.forEach((n) => { const t = tokens[at(layer, n) * k]; counts.set(t, (counts.get(t) || 0) + 1); });
    const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 14);
    $("chips").replaceChildren(
      ...targets.map((one, n) => chip(`${one.word} (target)`, () => choose(one.word, n), word && word.target === n)),
      ...common.map(([t, n]) => chip(`${data.words[t]} ${n}`, () => choose(data.words[t]), word && word.number === t
        && word.target === null)));
  }

  function chip(text, act, now) {
    const one = make("button", text, now ? "now" : "");
    one.type = "button";
    one.setAttribute("aria-pressed", String(Boolean(now)));
    one.addEventListener("click", () => { act(); refocus("chips", text); });
    return one;
  }

  function refocus(id, text) { [...$(id).querySelectorAll("button")].find((one) => one.textContent === text)?.focus(); }

  function choose(text, target = null) {
    const number = known.get(text) ?? null;
    word = text === null || (number === null && target === null) ? null : { text, number, target };
    if (word) word.scale = scale();
    if (typed.value !== (text ?? "")) typed.value = text ?? "";
    draw();
  }

  function look(text) {  // for a word that was typed
    const target = targets.findIndex((one) => one.word === text);
    if (target < 0 && !known.has(text)) return false;
    choose(text, target < 0 ? null : target);
    return true;
  }

  function go(l) {
    layer = Math.min(Math.max(l, 0), data.layers.length - 1);
    slider.value = layer;
    draw();
  }

  function entry(j) {
    const one = make("button", data.words[tokens[j]], word && word.number === tokens[j] ? "now" : "");
    one.type = "button";
    one.tabIndex = -1;
    one.title = `${data.words[tokens[j]]}: ${percent(chance(nats[j]))}; click for where it is read`;
    one.addEventListener("click", () => choose(data.words[tokens[j]]));
    return one;
  }

  function cell(content, name) {
    const one = make("td", undefined, name);
    one.append(content);
    return one;
  }

  function tell() {
    panel.replaceChildren();
    if (shown === null || shown < data.first) {
      const how = "Point at a position, click it, or go there with Tab and the arrow keys, for its words.";
      panel.append(make("p", how, "soft"));
      return;
    }
    const n = shown - data.first, now = make("table"), all = make("table"), wide = make("div", undefined, "wide");
    panel.append(make("h2", stage.about[shown]));
    panel.append(make("p", `${named(layer)}, entropy ${unsure(layer, n).toFixed(2)} nats`, "soft"));
    for (let j = at(layer, n) * k; j < (at(layer, n) + 1) * k; j++) {
      const line = make("tr"), bar = make("span", undefined, "bar");
      bar.style.width = `${(9 * chance(nats[j])).toFixed(2)}rem`;
      line.append(cell(entry(j)), cell(percent(chance(nats[j])), "number"), cell(bar));
      now.append(line);
    }
    targets.forEach((one) => {
      const line = make("tr"), rank = one.ranks[at(layer, n)] + 1;
      const share = percent(chance(one.nats[at(layer, n)]));
      line.append(cell(`${one.word} (target)`), cell(share, "number"), cell(`rank ${rank}`));
      now.append(line);
    });
    const head = make("tr"), words = Math.min(k, 3);
    ["layer", "nats", ...Array(words).fill("").map((_, j) => `word ${j + 1}`)].forEach((text) => {
      const one = make("th", text);
      one.style.textAlign = "left";
      head.append(one);
    });
    all.append(head);
    data.layers.forEach((name, l) => {
      const line = make("tr", undefined, l === layer ? "now" : ""), go_ = make("button", name);
      go_.type = "button";
      go_.tabIndex = -1;
      go_.addEventListener("click", () => go(l));
      line.append(cell(go_), cell(unsure(l, n).toFixed(2)));
      for (let j = 0; j < words; j++) {
        const i = at(l, n) * k + j, both = make("td"), share = make("span", ` ${percent(chance(nats[i]))}`, "soft");
        both.append(entry(i), share);
        line.append(both);
      }
      all.append(line);
    });
    wide.append(all);
    panel.append(now, make("h3", "layer by layer"), wide);
  }

  const stage = staged("stage", (position) => { shown = position; tell(); });
  slider.addEventListener("input", () => go(slider.valueAsNumber));
  shade.addEventListener("change", () => { if (word) choose(null); else draw(); });
  written.addEventListener("change", draw);
  typed.addEventListener("input", () => look(typed.value.trim()));
  typed.addEventListener("change", () => {
    const text = typed.value.trim();
    if (look(text)) return;
    if (word) { word = null; draw(); }
    if (text) $("legend").textContent = `no position has “${text}” among its ${k} top words`;
  });
  $("clear").addEventListener("click", () => choose(null));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === typed) return;
    const step = { "+": 1, "=": 1, "-": -1 }[event.key];
    if (step) go(layer + step);
  });
  draw();
})();
"""
