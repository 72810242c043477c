"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

data.configs.forEach(config => { config.runs = data.runs.filter(run => run.config === config.name); });
data.runs.forEach(run => { run.title = run.config + (run.seed === null ? "" : `, seed ${run.seed}`); });
const state = { picked: new Set(data.configs.map(config => config.name)), open: new Set(), sort: null,
                descending: false };

at("count").textContent = data.runs.length === 1 ? "one run" : `${data.runs.length} runs`;
at("about").textContent = "On " + data.dataSets.join(", ") + ".";
at("command").textContent = data.command;

// ------------------------------------------------------------------------------------------------------- the table
const columns = [
  { name: "name", title: "config", meaning: "The config, and what of the grid is varied in it." },
  { name: "seeds", title: "seeds", meaning: "The seeds of its runs, which set weights, order and masks." },
  ...data.columns,
  { name: "parameters", title: "parameters", meaning: "Numbers that the training may change." },
];
const seedsOf = config => config.seeds.length > 4 ? `${config.seeds.length} seeds` : config.seeds.join(", ");
const valueOf = (config, name) =>
  name === "name" ? config.name : name === "seeds" ? config.seeds.length
  : name === "parameters" ? config.parameters : config.cells[name].value;
const textOf = (config, name) =>
  name === "name" ? config.name : name === "seeds" ? seedsOf(config)
  : name === "parameters" ? config.parameters.toLocaleString("en") : config.cells[name].text;

function shownConfigs() {
  const part = at("filter").value.toLowerCase();
  const configs = data.configs.filter(config => config.name.toLowerCase().includes(part));
  if (state.sort === null) return configs;
  const sign = state.descending ? -1 : 1;
  return configs.sort((a, b) => {
    const [x, y] = [valueOf(a, state.sort), valueOf(b, state.sort)];
    if (x === null || y === null) return (x === null) - (y === null); // what is not there comes last
    return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
  });
}

function swatch(config) {
  const holder = make("span", {});
  const dashes = { solid: "", dash: "5 3", dot: "1.5 2.5", dashdot: "5 2.5 1.5 2.5" };
  // Black, the last of the colours, can't be seen in the dark.
  const colour = config.colour === "#000000" ? "var(--ink)" : config.colour;
  holder.innerHTML = `<svg class="swatch" viewBox="0 0 24 10" aria-hidden="true"><path d="M0 5H24" stroke-width="3"
    stroke="${colour}" stroke-dasharray="${dashes[config.dash]}"/></svg>`;
  return holder.firstChild;
}

function drawHead() {
  at("table").tHead.rows[0].replaceChildren(...columns.map(column => {
    const button = make("button", { onclick: () => sortBy(column.name) },
      make("abbr", { textContent: column.title, title: column.meaning }));
    const head = make("th", { scope: "col" }, button);
    head.dataset.column = column.name;
    if (state.sort === column.name) head.ariaSort = state.descending ? "descending" : "ascending";
    return head;
  }));
}

function sortBy(name) {
  state.descending = state.sort === name && !state.descending;
  state.sort = name;
  drawHead();
  drawRows();
}

/** "1.234 ± 0.005 (2 of 3)" as parts that are not broken, between which a narrow cell may be. */
function cell(text) {
  const parts = text.split(/ (?=[±(])/).flatMap((part, i) => [i ? " " : "", make("span", { textContent: part })]);
  return make("td", {}, ...parts);
}

function configRow(config) {
  const isOpen = state.open.has(config.name);
  const fold = make("button", { className: "fold", textContent: isOpen ? "▾" : "▸", ariaExpanded: isOpen,
                                ariaLabel: "seeds of " + config.name });
  fold.onclick = () => { toggle(state.open, config.name); drawRows(); };
  const box = make("input", { type: "checkbox", checked: state.picked.has(config.name) });
  box.onchange = () => pick(config.name);
  const label = make("label", { className: "name" }, box, swatch(config), make("span", { textContent: config.name }));
  return make("tr", { className: box.checked ? "config picked" : "config" },
    make("th", { scope: "row" }, make("div", {}, fold, label)), ...columns.slice(1).map(({ name }) => cell(textOf(config, name))));
}

function seedRow(run) {
  const sides = ["A", "B"].map(side => {
    const button = make("button", { className: "side", textContent: side, title: `compare it below, as ${side}`,
                                    ariaPressed: data.runs[at(side).value] === run });
    button.onclick = () => { at(side).value = data.runs.indexOf(run); compare(); };
    return button;
  });
  const name = run.seed === null ? "no seed" : `seed ${run.seed}`;
  const link = make("a", { href: run.folder, textContent: "folder", title: "config, logs, pictures and checkpoints" });
  return make("tr", { className: "seed" }, make("th", { scope: "row" }, name, " ", link), make("td", {}, ...sides),
    ...data.columns.map(({ name }) => cell(run.cells[name].text)), make("td", {}));
}

function drawRows() {
  const rows = shownConfigs().flatMap(config =>
    [configRow(config), ...(state.open.has(config.name) ? config.runs.map(seedRow) : [])]);
  at("table").tBodies[0].replaceChildren(...rows);
  at("unfold").textContent = state.open.size ? "close all seeds" : "open all seeds";
}

function toggle(set, name) {
  set[set.has(name) ? "delete" : "add"](name);
}
function pick(name) {
  toggle(state.picked, name);
  drawRows();
  drawChart();
}
at("filter").oninput = () => { drawRows(); drawChart(); };
for (const id of ["all", "none"]) at(id).onclick = () => {
  state.picked = new Set(id === "all" ? data.configs.map(config => config.name) : []);
  drawRows();
  drawChart();
};
at("unfold").onclick = () => {
  state.open = new Set(state.open.size ? [] : data.configs.map(config => config.name));
  drawRows();
};
at("meanings").append(...columns.flatMap(column =>
  [make("dt", { textContent: column.title }), make("dd", { textContent: column.meaning })]));

/** What the table shows, with the seeds that are open. */
function asMarkdown() {
  const line = cells => `| ${cells.map(text => String(text).replaceAll("|", "\\|")).join(" | ")} |`;
  const rows = shownConfigs().flatMap(config => [
    columns.map(({ name }) => textOf(config, name)),
    ...(state.open.has(config.name) ? config.runs.map(run =>
      [run.config, run.seed ?? "", ...data.columns.map(({ name }) => run.cells[name].text), ""]) : []),
  ]);
  const rule = columns.map(({ name }) => name === "name" ? "---" : "---:");
  return [line(columns.map(column => column.title)), line(rule), ...rows.map(line), ""].join("\n");
}
at("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(asMarkdown());
    at("copy").textContent = "copied";
    setTimeout(() => { at("copy").textContent = "copy as Markdown"; }, 2000);
  } catch { // where pages from the disk may not write there
    Object.assign(at("markdown"), { value: asMarkdown(), hidden: false }).select();
  }
};

// ------------------------------------------------------------------------------------------------------- the chart
at("y").append(...data.quantities.map(({ name, title }) => make("option", { value: name, textContent: title })));
at("seeds").parentElement.hidden = data.runs.length === data.configs.length;
const DETAILS = {
  band: "A line is the mean over the seeds of a config, the band around it reaches from the lowest to the highest "
    + "seed. Where a seed has stopped early, the others go on as thin lines. ",
  each: "A line for each seed. ",
};

const isTouched = matchMedia("(pointer: coarse)").matches;
const transparent = colour => `rgba(${[1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16)).join()},0.18)`;
const bestRun = config => config.runs.reduce((a, b) =>
  (b.cells.val_loss.value ?? Infinity) < (a.cells.val_loss.value ?? Infinity) ? b : a);

function pointsOf(run, x, y, from = -Infinity) {
  const rows = run.epochs.map((epoch, i) => [epoch, run[x][i], run.curves[y][i]])
    .filter(([epoch, , value]) => value !== null && epoch >= from);
  return { x: rows.map(row => row[1]), y: rows.map(row => row[2]), epochs: rows.map(row => row[0]) };
}

function traceOf(config, points, title, how) {
  const colour = config.ink;
  return { x: points.x, y: points.y, name: config.name, mode: points.x.length === 1 ? "markers" : "lines",
           line: { color: colour, dash: config.dash, width: 2 }, marker: { color: colour, size: 5 },
           hovertemplate: `${title}<br>${at("x").value} %{x:.4~g}<br>${how}: %{y:${format()}}<extra></extra>` };
}
const quantity = () => data.quantities.find(({ name }) => name === at("y").value);
const format = () => quantity().share ? ".2%" : ".4~g";

function bandTraces(config, x, y) {
  const band = config.bands[y];
  const edge = { x: band[x], mode: "lines", line: { width: 0 }, hoverinfo: "skip", name: config.name };
  const end = band.epochs.at(-1) ?? -Infinity;
  const tails = config.runs.map(run => [run, pointsOf(run, x, y, end)])
    .filter(([, points]) => (points.epochs.at(-1) ?? -Infinity) > end)
    .map(([run, points]) => {
      const trace = traceOf(config, points, run.title, quantity().title);
      trace.line.width = 1;
      return trace;
    });
  return [
    { ...edge, y: band.low },
    { ...edge, y: band.high, fill: "tonexty", fillcolor: transparent(config.ink) },
    traceOf(config, { x: band[x], y: band.mean }, config.name, `${quantity().title}, mean`),
    ...tails,
  ];
}

function starTrace(config, run, x, y) {
  const i = run.epochs.indexOf(run.best);
  const trace = traceOf(config, { x: [run[x][i]], y: [run.curves[y][i]] }, run.title, quantity().title);
  const edge = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  trace.marker = { color: config.ink, symbol: "star", size: 13, line: { color: edge, width: 1 } };
  return run.cells.val_loss.value === null ? [] : [trace];
}

function drawChart() {
  const [x, y, seeds] = [at("x").value, at("y").value, at("seeds").value];
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = [style.getPropertyValue("--ink"), style.getPropertyValue("--line")];
  data.configs.forEach(config => { config.ink = config.colour === "#000000" ? ink : config.colour; });
  const configs = shownConfigs().filter(config => state.picked.has(config.name));
  const traces = configs.flatMap(config => seeds === "band" && config.runs.length > 1
    ? [...bandTraces(config, x, y), ...starTrace(config, bestRun(config), x, y)]
    : config.runs.flatMap(run =>
        [traceOf(config, pointsOf(run, x, y), run.title, quantity().title), ...starTrace(config, run, x, y)]));
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, exponentformat: "e", automargin: true };
  Plotly.react("chart", traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif" },
    margin: { t: 15, r: 15, b: 45, l: 55 }, hovermode: "closest", showlegend: false,
    dragmode: isTouched ? false : "zoom", // a finger scrolls the page
    xaxis: { ...axis, title: { text: x === "epochs" ? "epoch" : "seconds of training" },
             dtick: x === "epochs" && Math.max(...data.runs.map(run => run.epochs.length)) < 12 ? 1 : null },
    yaxis: { ...axis, title: { text: quantity().title }, type: at("log").checked ? "log" : "linear",
             tickformat: quantity().share ? "~%" : "" },
  }, { responsive: true, displayModeBar: false });
  drawLegend();
  const several = data.runs.length > data.configs.length;
  at("reading").textContent = (several ? DETAILS[seeds] : "")
    + `A star marks the epoch of the lowest validation loss${several && seeds === "band" ? " of any seed" : ""}. `
    + (isTouched ? "" : "Drag over a part to enlarge it; a double click shows all again.");
}

/** The chart's own legend would lie on the curves, or take their room where there are many. */
function drawLegend() {
  at("legend").replaceChildren(...shownConfigs().map(config => {
    const button = make("button", { title: config.name, ariaPressed: state.picked.has(config.name) },
      swatch(config), config.name);
    button.onclick = () => pick(config.name);
    return button;
  }));
}

/** Whether the values differ so much that the small ones can't be told apart on a linear scale. */
function isWide(y) {
  const values = data.runs.flatMap(run => run.curves[y]).filter(value => value !== null);
  return Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
}
at("y").onchange = () => { at("log").checked = isWide(at("y").value); drawChart(); };
for (const id of ["x", "seeds", "log"]) at(id).onchange = drawChart;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawChart);

// ---------------------------------------------------------------------------------------------------- side by side
for (const side of ["A", "B"]) {
  at(side).append(...data.runs.map((run, i) => make("option", { value: i, textContent: run.title })));
}
at("B").append(make("option", { value: "", textContent: "none" }));
at("A").value = data.runs.indexOf(bestRun(data.configs[0]));
at("B").value = data.configs.length > 1 ? data.runs.indexOf(bestRun(data.configs[1])) : data.runs.length > 1 ? 1 : "";

const compared = () => ["A", "B"].filter(side => at(side).value !== "").map(side => data.runs[at(side).value]);

function compare() {
  const runs = compared();
  const names = [...new Set(runs.flatMap(run => Object.keys(run.pictures)))];
  const before = at("picture").value;
  at("picture").replaceChildren(...names.map(name => make("option", { value: name, textContent: name })));
  if (names.includes(before)) at("picture").value = before;
  at("figures").tHead.rows[0].replaceChildren(make("th", {}), ...runs.map(run =>
    make("th", { scope: "col" }, make("a", { href: run.folder, textContent: run.title }))));
  at("figures").tBodies[0].replaceChildren(...data.columns.map(
    ({ name, title, meaning }) => make("tr", {},
      make("th", { scope: "row", title: meaning, textContent: title }), ...runs.map(run => cell(run.cells[name].text)))));
  drawPictures();
  drawRows();
}

function drawPictures() {
  const name = at("picture").value;
  at("pictures").className = compared().some(run => run.pictures[name]?.width > 900) ? "wide" : "";
  at("pictures").replaceChildren(...compared().map(run => {
    const picture = run.pictures[name];
    const caption = make("figcaption", { textContent: picture ? `${run.title}: ${name}` : `${run.title}: none` });
    if (!picture) return make("figure", {}, caption);
    const { image: bytes, width, height } = picture;
    const image = make("img", { src: "data:image/webp;base64," + bytes, width, height, alt: caption.textContent });
    return make("figure", {}, make("a", { href: run.folder + picture.file, title: "the file" }, image), caption);
  }));
}
for (const side of ["A", "B"]) at(side).onchange = compare;
at("picture").onchange = drawPictures;

drawHead();
compare();
at("y").onchange();
