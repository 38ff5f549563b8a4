"""What a neuron's card does in the browser, and how it looks; `mmlens.plot.neuron_card` makes the page."""

STYLE = """
h1 + p { margin-bottom: .6rem; } h2 { font-size: 1.1rem; overflow-wrap: anywhere; margin: 1.1rem 0 .3rem; }
h3 { font-size: .95rem; margin: .5rem 0 .1rem; }
[role=tablist] { display: flex; flex-wrap: wrap; gap: .35rem; margin: .5rem 0; }
[role=tab][aria-selected=true] { background: var(--ink); color: var(--ground); border-color: var(--ink); }
:focus-visible { outline: 2px solid var(--ring); outline-offset: 1px; }
.columns { display: flex; flex-wrap: wrap; gap: .3rem 2.6rem; } .columns > section { min-width: 0; }
.scroll-x { overflow-x: auto; } th { font-weight: 600; } h2 .soft, th .soft { font-weight: normal; }
.words td:nth-child(2), .words th:nth-child(2) { text-align: left; }
.bars td { white-space: nowrap; } .bars td:first-child { max-width: 16rem; overflow: hidden; text-overflow: ellipsis; }
.track { display: inline-block; position: relative; width: 8rem; height: .72em; vertical-align: baseline; }
.track i { position: absolute; top: 0; height: 100%; background: var(--hot); border-radius: 2px; }
.number { display: inline-block; min-width: 4.6em; }
.track i.cold { background: var(--cold); } .track b { position: absolute; top: -.2em; width: 1px; height: 1.15em;
  background: var(--soft); }
.fields { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; } .field { min-width: 0; max-width: 100%; width: min-content; }
.field .stage > label { display: none; } .field figcaption { display: none; } .field p { font-size: .85rem; width: 0;
  min-width: 100%; overflow-wrap: anywhere; } .field .stage figure { margin: .2rem 0; }
.field .read { min-height: 1.4em; font-variant-numeric: tabular-nums; }
.effects text { font: 13px system-ui, sans-serif; fill: var(--ink); } .effects .soft { fill: var(--soft); }
.effects { display: block; max-width: 100%; height: auto; } .effects .zero { stroke: var(--soft); }
.effects .draws { fill: var(--soft); fill-opacity: .3; } .effects .draw { stroke: var(--soft); stroke-width: 1.5; }
.effects .own { fill: var(--mark); } .effects .interval { stroke: var(--mark); stroke-width: 2.5; }
.legend i { display: inline-block; width: 1.6em; height: .75em; border-radius: 2px; vertical-align: baseline; }
"""

SCRIPT = r"""
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tabs = [...document.querySelectorAll("[role=tab]")], zoom = document.getElementById("zoom");
  const colour = document.getElementById("colour");
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(3);
  let now = 0;
  const reads = data.fields.map((_, n) => document.getElementById(`read${n}`));
  const stages = data.fields.map((field, n) => staged(`field${n}`, (position) => read(n, position)));

  function read(n, position) {
    const { positions, values, about, group } = data.fields[n], at = positions.indexOf(position);
    const place = at < 0 ? "" : stages[n].about[position].replace(`${group}, `, "");
    reads[n].textContent = at < 0 ? about[now] : `${signed(values[now][at])}, ${place}`;
  }

  function show(which) {
    now = which;
    for (const one of document.querySelectorAll("[data-neuron]")) one.hidden = Number(one.dataset.neuron) !== now;
    tabs.forEach((tab, n) => {
      tab.setAttribute("aria-selected", String(n === now));
      tab.tabIndex = n === now ? 0 : -1;
    });
    data.fields.forEach((field, n) => {
      const values = Array(stages[n].length);
      field.positions.forEach((position, at) => { values[position] = field.values[now][at] / data.scale[now]; });
      paint(stages[n], colour.checked ? values : null);
      read(n, stages[n].chosen);
      for (const view of stages[n].root.querySelectorAll("[role=listbox]")) {
        view.setAttribute("aria-label", `${data.names[now]} on ${field.name}: ${field.about[now]}`);
      }
    });
  }

  tabs.forEach((tab, n) => {
    tab.addEventListener("click", () => show(n));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: n + 1, ArrowDown: n + 1, ArrowLeft: n - 1, ArrowUp: n - 1, Home: 0, End: -1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const next = (to + tabs.length) % tabs.length;
      show(next);
      tabs[next].focus();
    });
  });
  if (zoom) {
    zoom.addEventListener("input", () => {
      for (const own of document.querySelectorAll(".zoom")) {
        own.value = zoom.value;
        own.dispatchEvent(new Event("input"));
      }
    });
    colour.addEventListener("change", () => show(now));
  }
  show(0);
})();
"""
