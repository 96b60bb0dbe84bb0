"""The frame of the report's page: its markup, style and script; ``@name@`` is filled in."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@title@</title>
<style>@style@</style>
</head>
<body>
<header><h1>@title@</h1><p>@caption@</p></header>
<main>
@notes@
@table@
@ranks@
@tasks@
<ul>@abouts@</ul>
<details><summary>What the columns are</summary><dl>@definitions@</dl></details>
<section id="plot" aria-label="Scores of the pairs" hidden>
<p><label>Score <select id="metric"></select></label>
<label>Order <select id="order"><option value="">of the data set</option></select></label></p>
<div id="lines"></div>
<p class="hint" id="legend"></p>
</section>
<nav aria-label="Pairs" hidden>
<button type="button" id="previous" aria-label="Previous pair">&larr;</button>
<label>Pair <select id="choice">@options@</select></label>
<button type="button" id="next" aria-label="Next pair">&rarr;</button>
<span id="position" role="status"></span>
<label>Show <select id="base"><option value="">pictures</option></select></label>
<label>Zoom <input type="range" id="zoom" min="1" max="12" step="1" value="4"></label>
<span class="hint">arrow keys leaf through; point or drag in a picture, or shift and arrow keys, to
move the crops of all<span id="key" hidden>; red is brighter, blue darker, in full color from 64
gray levels</span></span>
</nav>
@panels@
</main>
<script type="application/json" id="scores">@scores@</script>
<script>@script@</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --paper: #fff; --soft: #5c6470; --line: #d5d9df;
  --wash: #f3f5f7; --warn: #8a4b00; --warn-wash: #fff3df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15171a; --soft: #9aa3af;
  --line: #353a41; --wash: #1e2125; --warn: #ffc46b; --warn-wash: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 1rem 1.5rem 3rem; color: var(--ink);
  background: var(--paper); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; }
.scroll + .hint { margin-bottom: .25rem; }
h2 { font-size: 1.15rem; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
header p, .hint, figcaption, .note { color: var(--soft); }
header p { margin: .25rem 0 1rem; }
.warning { color: var(--warn); background: var(--warn-wash); border-left: 4px solid currentColor;
  padding: .5rem .75rem; }
.flag { color: var(--warn); font-weight: 600; font-size: .85em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .55rem; text-align: right; white-space: nowrap; }
tbody th, thead th:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; }
tr.std td { color: var(--soft); font-size: .85em; padding-top: 0; }
tr.paper th, tr.paper td { color: var(--soft); font-weight: 400; font-style: italic; }
tr:not(.std) + tr:not(.std) > *, tr.std + tr:not(.std) > * { border-top: 1px solid var(--line); }
details { margin: 1rem 0; }
dt { font-weight: 600; }
dd { margin: 0 0 .4rem 1.2rem; color: var(--soft); }
ul:empty { display: none; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .6rem;
  align-items: center; padding: .6rem 0; background: var(--paper);
  border-bottom: 1px solid var(--line); }
nav[hidden] { display: none; }
button, select { font: inherit; color: inherit; background: var(--wash); padding: .3rem .8rem;
  border: 1px solid var(--line); border-radius: 6px; }
select { max-width: 60vw; }
:focus-visible { outline: 3px solid #4c8dff; outline-offset: 2px; }
.pictures { display: grid; gap: .8rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
figure { margin: 0; }
img, canvas { display: block; width: 100%; height: auto; background: var(--wash); }
.view { position: relative; overflow: hidden; cursor: crosshair; touch-action: pan-y; }
.view canvas { position: absolute; inset: 0; height: 100%; }
.lens { position: absolute; border: 2px solid #ffd000; box-shadow: 0 0 0 1px #000;
  pointer-events: none; }
.crop { margin-top: 4px; border: 2px solid #ffd000; image-rendering: pixelated; }
canvas[hidden] { display: none; }
th button { padding: 0; border: 0; background: none; font-weight: inherit; cursor: pointer; }
th[aria-sort] button { text-decoration: underline; }
#plot label { margin-right: 1rem; }
#lines svg { display: block; width: 100%; height: 230px; cursor: pointer; }
#lines text { fill: var(--soft); font-size: 12px; }
#legend span { margin-right: 1rem; white-space: nowrap; }
#legend i { display: inline-block; width: .9em; height: .9em; margin-right: .3em;
  border-radius: 50%; }
@media (max-width: 700px) { body { padding: .5rem .75rem 2rem; } nav { position: static; }
  .pictures { grid-template-columns: 1fr 1fr; gap: .4rem; } figcaption { font-size: .85rem; } }
figcaption { padding-top: .2rem; }
"""

SCRIPT = r"""
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId('scores').textContent);
const panels = [...document.querySelectorAll('.panel')];
const choice = byId('choice');
const colors = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c6bb1',
  '#777'];
const place = { x: 0.5, y: 0.5, zoom: 4 };
let current = 0;
let order = data.pairs.map((_, n) => n);
let sequence = panels.map((_, n) => n);

function show(n, note = true) {
  current = n;
  panels.forEach((panel, k) => { panel.hidden = k !== n; });
  choice.value = String(n + 1);
  byId('position').textContent = `${sequence.indexOf(n) + 1} of ${panels.length}`;
  if (note) history.replaceState(null, '', `#pair-${n + 1}`);
  enlarge();
  plot();
}
function leaf(step) {
  const at = sequence.indexOf(current) + step;
  show(sequence[(at + sequence.length) % sequence.length]);
}
function fromAddress(note) {
  const found = /^#pair-(\d+)$/.exec(location.hash);
  show(found ? Math.max(1, Math.min(Number(found[1]), panels.length)) - 1 : sequence[0], note);
}

// Crops: one place of all the pictures of a pair

function figures() {
  return [...panels[current].querySelectorAll('figure')].map((figure) => {
    const view = figure.querySelector('.view');
    if (!figure.crop) {
      figure.crop = document.createElement('canvas');
      figure.crop.className = 'crop';
      view.after(figure.crop);
      figure.lens = view.appendChild(document.createElement('span'));
      figure.lens.className = 'lens';
    }
    return figure;
  });
}
function enlarge() {
  if (document.readyState !== 'complete') return; // pictures are being decoded: 'load' calls again
  difference(figures());
  crops();
}
function crops() {
  for (const figure of figures()) {
    const image = figure.querySelector('img');
    const source = figure.changed ?? image;
    const size = 1 / place.zoom;
    const left = Math.min(Math.max(place.x - size / 2, 0), 1 - size);
    const top = Math.min(Math.max(place.y - size / 2, 0), 1 - size);
    Object.assign(figure.lens.style, {
      left: `${100 * left}%`, top: `${100 * top}%`,
      width: `${100 * size}%`, height: `${100 * size}%`,
    });
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    Object.assign(figure.crop, { width, height });
    figure.crop.hidden = figure.lens.hidden = place.zoom === 1;
    const context = figure.crop.getContext('2d');
    context.imageSmoothingEnabled = false;
    context.drawImage(source, left * width, top * height, size * width, size * height,
      0, 0, width, height);
  }
}
function move(x, y) {
  place.x = Math.min(Math.max(x, 0), 1);
  place.y = Math.min(Math.max(y, 0), 1);
  crops();
}
for (const kind of ['pointermove', 'pointerdown']) {
  document.addEventListener(kind, (event) => {
    const view = event.target.closest?.('.view');
    if (!view || place.zoom === 1) return;
    const box = view.getBoundingClientRect();
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
}

// Differences from one of the pictures, by the embedded pixels

function levels(image) {
  const canvas = document.createElement('canvas');
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
function difference(all) {
  const chosen = byId('base').value;
  byId('key').hidden = chosen === '';
  for (const figure of all) figure.changed?.remove();
  for (const figure of all) figure.changed = null;
  if (chosen === '') return;
  const base = levels(all[Number(chosen)].querySelector('img')).data;
  for (const figure of all) {
    const image = figure.querySelector('img');
    const found = levels(image);
    const pixels = found.data;
    for (let k = 0; k < pixels.length; k += 4) {
      const change = 0.299 * (pixels[k] - base[k]) + 0.587 * (pixels[k + 1] - base[k + 1])
        + 0.114 * (pixels[k + 2] - base[k + 2]);
      const rest = 255 - Math.min(255, Math.abs(change) * 4);
      pixels[k] = change < 0 ? rest : 255;
      pixels[k + 1] = rest;
      pixels[k + 2] = change > 0 ? rest : 255;
    }
    figure.changed = document.createElement('canvas');
    Object.assign(figure.changed, { width: found.width, height: found.height });
    figure.changed.getContext('2d').putImageData(found, 0, 0);
    image.after(figure.changed);
  }
}

// The plot, and the order of the pairs

function plot() {
  const column = data.columns[Number(byId('metric').value)];
  const finite = column.values.flat().filter((v) => v !== null);
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const wide = Math.max(byId('lines').clientWidth, 200);
  const x = (k) => 50 + ((wide - 60) * (k + 0.5)) / order.length;
  const y = (v) => 215 - (200 * (v - low)) / (high - low || 1);
  const now = order.indexOf(data.shown[current]);
  let marks = `<line x1="${x(now)}" x2="${x(now)}" y1="10" y2="220" stroke="var(--soft)"/>`;
  for (const v of finite.length ? [low, high] : []) {
    marks += `<text x="44" y="${y(v) + 4}" text-anchor="end">${Number(v.toPrecision(4))}</text>`;
  }
  column.values.forEach((values, m) => {
    const color = colors[m % colors.length];
    const points = order.map((pair, k) => [x(k), values[pair]]).filter(([, v]) => v !== null)
      .map(([at, v]) => [at.toFixed(1), y(v).toFixed(1)]);
    marks += `<polyline fill="none" stroke="${color}" points="${points.join(' ')}"/>`;
    if (order.length <= 100) {
      marks += points.map(([a, b]) => `<circle cx="${a}" cy="${b}" r="3.5" fill="${color}"/>`)
        .join('');
    }
  });
  byId('lines').innerHTML = `<svg viewBox="0 0 ${wide} 230" role="img">${marks}</svg>`;
  byId('lines').firstChild.setAttribute('aria-label',
    `${column.name} of each method over ${order.length} pairs, from ${low} to ${high}`);
}
function sort() {
  const column = data.columns[Number(byId('metric').value)];
  const method = byId('order').value;
  order = data.pairs.map((_, n) => n);
  if (method !== '') {
    const values = column.values[Number(method)];
    const sign = column.lower ? -1 : 1;
    order.sort((a, b) => sign * ((values[a] ?? 0) - (values[b] ?? 0)));
  }
  const rank = new Map(order.map((pair, k) => [pair, k]));
  sequence = panels.map((_, n) => n)
    .sort((a, b) => rank.get(data.shown[a]) - rank.get(data.shown[b]));
  for (const n of sequence) choice.append(choice.querySelector(`option[value="${n + 1}"]`));
}
function option(select, value, text) {
  select.append(Object.assign(document.createElement('option'), { value, textContent: text }));
}
data.columns.forEach((column, n) => {
  option(byId('metric'), n, column.name + (column.lower ? '↓' : ''));
});
data.methods.forEach((name, n) => {
  option(byId('order'), n, `worst of ${name} first`);
  const entry = byId('legend').appendChild(document.createElement('span'));
  entry.append(document.createElement('i'), name);
  entry.firstChild.style.background = colors[n % colors.length];
});
['first source', 'second source', ...data.methods].forEach((name, n) => {
  option(byId('base'), n, `difference from ${name}`);
});
byId('lines').addEventListener('click', (event) => {
  const box = byId('lines').getBoundingClientRect();
  const at = (event.clientX - box.left - 50) / (box.width - 60) * order.length - 0.5;
  const near = sequence.map((n) => [Math.abs(order.indexOf(data.shown[n]) - at), n]);
  show(near.sort((a, b) => a[0] - b[0])[0][1]);
});
for (const id of ['metric', 'order']) {
  byId(id).addEventListener('change', () => {
    sort();
    if (byId('order').value === '') show(current); else show(sequence[0]);
  });
}
byId('base').addEventListener('change', enlarge);
byId('zoom').addEventListener('input', () => { place.zoom = Number(byId('zoom').value); crops(); });

// Methods by a column: a mean keeps its deviation, rows of the paper stay last

for (const head of document.querySelectorAll('thead th')) {
  const button = Object.assign(document.createElement('button'), { type: 'button' });
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') !== 'descending';
    for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const body = head.closest('table').tBodies[0];
    const groups = [];
    for (const row of body.rows) {
      if (row.className === 'std') groups.at(-1).push(row); else groups.push([row]);
    }
    const value = ([row]) => {
      const text = row.cells[head.cellIndex].textContent;
      if (!head.cellIndex) return text;
      return Number.isNaN(parseFloat(text)) ? -Infinity : parseFloat(text);
    };
    groups.sort((a, b) => (a[0].className === 'paper') - (b[0].className === 'paper')
      || (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0) * (down ? -1 : 1));
    body.append(...groups.flat());
  });
}

document.querySelector('nav').hidden = byId('plot').hidden = false;
byId('previous').addEventListener('click', () => leaf(-1));
byId('next').addEventListener('click', () => leaf(1));
choice.addEventListener('change', () => show(Number(choice.value) - 1));
addEventListener('load', () => setTimeout(enlarge));
addEventListener('resize', plot);
addEventListener('hashchange', () => fromAddress(true));
addEventListener('keydown', (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest?.('select, input, .scroll')) return;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key];
  if (!step) return;
  const part = 0.25 / place.zoom;
  if (event.shiftKey) move(place.x + step[0] * part, place.y + step[1] * part);
  else if (step[0]) leaf(step[0]);
  else return;
  event.preventDefault();
});
fromAddress(false);
"""
