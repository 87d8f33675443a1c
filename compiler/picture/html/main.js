// The page: state, controls, keys.

const byId = (id) => document.getElementById(id);
const data = readData();
const state = {
  graph: 0, stage: 0, open: null, selected: null, plumbing: false, changes: true, found: [], query: "", at: -1,
};
let stage = null;
const view = data.graphs.length ? new View(data, byId("canvas"), { pick, fold, moved: () => minimap.frame() }) : null;
const minimap = view && new Minimap(view, byId("minimap"));

function readData() {
  const found = JSON.parse(byId("data").textContent);
  found.lines = found.lines.map((row) => {
    const line = Object.fromEntries(found.fields.map((field, i) => [field, row[i]]));
    return { ...line, array: line.array ?? -1, layer: line.layer ?? "", rule: line.rule ?? "", why: line.why ?? "" };
  });
  for (const array of found.arrays) {
    array.grid = [array.row_bounds.length - 1, array.col_bounds.length - 1];
    array.tiles = array.groups * array.grid[0] * array.grid[1];
  }
  for (const graph of found.graphs) {
    // What a pass left alone is one stage with two names.
    graph.names = graph.stages.map((one) => one.pass);
    for (let i = 1; i < graph.stages.length; i += 1) {
      if (graph.stages[i].same) graph.stages[i] = graph.stages[i - 1];
    }
  }
  return found;
}

const graph = () => data.graphs[state.graph];

// -- showing

function show({ keep = null, refit = false } = {}) {
  const at = keep && view.anchor(keep);
  const start = performance.now();
  stage = stageGraph(data, graph(), state.stage, state.plumbing, state.changes);
  state.open ??= openAtFirst(stage.tree);
  const layout = layoutGraph(data, stage, state.open);
  const laid = performance.now();
  view.draw(layout);
  const seconds = { layout: laid - start, draw: performance.now() - laid };
  document.documentElement.dataset.layoutMs = seconds.layout.toFixed(1);
  document.documentElement.dataset.drawMs = seconds.draw.toFixed(1);
  minimap.draw();
  if (refit || !keep || !view.hold(keep, at)) view.fit();
  const boxes = view.places.size;
  byId("status").textContent = `${number(stage.lines.size)} nodes, ${number(boxes)} boxes shown`;
  showStage();
  showSelection();
}

function showStage() {
  const name = graph().names[state.stage];
  const count = stage.tree.get(-1).sum.changes;
  byId("stage").value = state.stage;
  byId("stage-name").textContent = state.stage === 0 ? "captured" : `after ${name}`;
  byId("stage").setAttribute("aria-valuetext", byId("stage-name").textContent);
  byId("stage-count").textContent = state.stage === 0 || !state.changes ? "" : count ? `${count} changed` : "no change";
}

function showSelection() {
  view.light(state.selected, matchingBoxes());
  const panel = byId("panel");
  const actions = { go, toggle: fold, tiles: showTiles };
  const [kind, rest] = state.selected ? [state.selected[0], state.selected.slice(2)] : ["", ""];
  let parts;
  if (kind === "n" && stage.nodes.has(rest)) parts = describeNode(data, graph(), stage, stage.nodes.get(rest), actions);
  else if (kind === "g" && stage.tree.has(Number(rest))) parts = describeGroup(data, stage, stage.tree.get(Number(rest)), actions);
  else parts = describeModel(data, graph(), actions);
  panel.replaceChildren(...parts.flat().filter(Boolean));
  panel.scrollTop = 0;
  if (state.selected) byId("said").textContent = panel.querySelector("h2").textContent;
}

// -- doing

function pick(id) {
  if (id && id.startsWith("g ")) {
    fold(Number(id.slice(2)));
    return;
  }
  state.selected = id;
  showSelection();
}

function fold(group) {
  const { key } = stage.tree.get(group);
  if (!state.open.delete(key)) state.open.add(key);
  state.selected = `g ${group}`;
  show({ keep: `g ${group}` });
}

function unfoldTo(home) {
  let opened = false;
  for (let at = home; at !== -1 && at !== null; at = stage.tree.get(at).parent) {
    const { key } = stage.tree.get(at);
    opened ||= !state.open.has(key);
    state.open.add(key);
  }
  return opened;
}

function go(name) {
  showTab("graph");
  if (!stage.lines.has(name)) {
    const position = data.graphs.findIndex((one) => one.stages.at(-1).lines.some((row) => data.lines[row].name === name));
    if (position < 0) return;
    setGraph(position);
    if (!stage.lines.has(name)) {
      state.plumbing = byId("plumbing").checked = true;
      show();
    }
  }
  const box = stage.alias.get(name) ?? name;
  state.selected = `n ${box}`;
  if (unfoldTo(stage.nodes.get(box).home)) show({ keep: state.selected });
  else showSelection();
  view.centre(state.selected);
}

function setStage(position) {
  const last = graph().stages.length - 1;
  const wanted = Math.max(0, Math.min(last, position));
  if (wanted === state.stage) return;
  state.stage = wanted;
  show({ keep: state.selected ?? nearestBox() });
}

function nearestBox() {
  const { width, height } = view.canvas.getBoundingClientRect();
  let best = null;
  let least = Infinity;
  for (const [id, place] of view.places) {
    if (place.item.inner) continue;
    const x = view.x + (place.x + place.width / 2) * view.scale - width / 2;
    const y = view.y + place.y * view.scale - height / 3;
    if (Math.hypot(x, y) < least) [best, least] = [id, Math.hypot(x, y)];
  }
  return best;
}

function foldAll() {
  state.open.clear();
  show({ refit: true });
}

function unfoldAll() {
  for (const group of stage.tree.values()) if (group.key) state.open.add(group.key);
  show({ refit: true });
}

// Along an edge, or to the neighbour in the layer.
function walk(key) {
  const here = view.places.get(state.selected);
  const boxes = [...view.places].filter(([, place]) => !place.item.inner);
  if (!here) {
    const first = boxes.reduce((a, b) => (b[1].y < a[1].y ? b : a));
    state.selected = first[0];
  } else {
    const [cx, cy] = [here.x + here.width / 2, here.y + here.height / 2];
    let best = null;
    let least = Infinity;
    const linked = new Set(view.links.filter(({ edge }) => edge.net === state.selected || edge.to === state.selected)
      .flatMap(({ edge }) => [edge.from, edge.to]));
    for (const [id, place] of boxes) {
      if (id === state.selected) continue;
      const dx = place.x + place.width / 2 - cx;
      const dy = place.y + place.height / 2 - cy;
      const [along, across] = {
        ArrowDown: [dy, dx], ArrowUp: [-dy, dx], ArrowRight: [dx, dy], ArrowLeft: [-dx, dy],
      }[key];
      if (along <= 1) continue;
      const vertical = key === "ArrowDown" || key === "ArrowUp";
      const far = along + 2 * Math.abs(across) + (vertical && !linked.has(id) ? 4000 : 0);
      if (far < least) [best, least] = [id, far];
    }
    if (!best) return;
    state.selected = best;
  }
  showSelection();
  view.centre(state.selected, 0);
}

// -- search

function search(query) {
  state.query = query.trim().toLowerCase();
  const words = state.query.split(/\s+/).filter(Boolean);
  state.found = !words.length ? [] : [...stage.lines.values()].filter((line) => {
    const all = `%${line.name} ${line.op} ${line.layer} ${line.module} ${line.type} ${line.source}`.toLowerCase();
    return words.every((word) => all.includes(word));
  });
  state.at = -1;
  const list = byId("found");
  const rows = state.found.slice(0, 40).map((line, i) =>
    el("li", { role: "option", id: `found-${i}`, onpointerdown: (event) => { event.preventDefault(); choose(i); } },
      el("b", {}, line.layer || `%${line.name}`), el("span", {}, ` ${line.op}`), el("small", {}, line.module)));
  if (words.length) {
    const count = state.found.length;
    rows.push(el("li", { class: "count" }, count > 40 ? `${count} found, the first 40 are listed` : `${count} found`));
  }
  list.replaceChildren(...rows);
  list.hidden = !words.length;
  byId("search").setAttribute("aria-expanded", String(Boolean(words.length)));
  view.light(state.selected, matchingBoxes());
}

function choose(position) {
  if (!state.found.length) return;
  state.at = position;
  const name = state.found[position].name;
  byId("found").hidden = true;
  byId("search").setAttribute("aria-expanded", "false");
  go(name);
}

function point(step) {
  const count = Math.min(40, state.found.length);
  if (!count) return;
  state.at = (state.at + step + count) % count;
  [...byId("found").children].forEach((row, i) => row.setAttribute("aria-selected", String(i === state.at)));
  byId("search").setAttribute("aria-activedescendant", `found-${state.at}`);
  byId("found").hidden = false;
  byId("found").children[state.at].scrollIntoView({ block: "nearest" });
}

function matchingBoxes() {
  const boxes = new Set();
  if (!state.query) return boxes;
  for (const { name } of state.found) {
    const box = stage.alias.get(name) ?? name;
    if (!stage.nodes.has(box)) continue;
    const node = stage.nodes.get(box);
    let id = `n ${box}`;
    for (let at = node.home; at !== -1 && at !== null && stage.tree.has(at); at = stage.tree.get(at).parent) {
      if (!state.open.has(stage.tree.get(at).key)) id = `g ${at}`;
    }
    boxes.add(id);
  }
  return boxes;
}

// -- tabs

function showTab(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    byId(`tab-${tab.dataset.tab}`).hidden = !on;
  }
  if (name === "tiles") drawTiles();
  if (name === "layers") drawLayers();
}

function showTiles(number) {
  showTab("tiles");
  const card = byId(`array-${number}`);
  card.scrollIntoView({ block: "center" });
  for (const other of document.querySelectorAll(".array.lit")) other.classList.remove("lit");
  card.classList.add("lit");
}

function usesOf(array) {
  return array.uses.map(([position, name]) => link(`%${name}`, () => {
    if (position !== state.graph) setGraph(position);
    go(name);
  }));
}

function drawTiles() {
  const zoom = Number(byId("tile-zoom").value);
  const order = byId("tile-order").value;
  const largest = Math.max(...data.arrays.map((array) => Math.max(array.tile_rows, array.tile_cols)), 1);
  const unit = (zoom * 64) / largest;
  const wide = byId("tile-map").clientWidth - 40;
  const said = byId("tile-said");
  const say = (string) => { said.textContent = string || "Point at a tile to see what sits there."; };
  say("");
  const sorted = data.arrays.map((array, i) => [array, i]);
  if (order === "used") sorted.sort((a, b) => a[0].used - b[0].used || a[1] - b[1]);
  if (order === "tiles") sorted.sort((a, b) => b[0].tiles - a[0].tiles || a[1] - b[1]);
  byId("tile-map").replaceChildren(...sorted.map(([array, i]) => {
    const map = tileMap(array, unit, wide, say);
    map.addEventListener("click", () => usesOf(array)[0].click());
    const ids = array.tiles === 1 ? `t${array.first}` : `t${array.first}…t${array.first + array.tiles - 1}`;
    return el("section", { class: "array", id: `array-${i}`, "aria-label": array.name },
      el("h3", {}, array.name),
      el("p", { class: "dim" }, `${array.op} ${array.shape.join("×")} · ${tilesText(array)} · ${ids} · ${percent(array.used)} used`),
      map, el("p", { class: "uses" }, array.uses.length > 1 ? "one copy, used by " : "", usesOf(array)));
  }));
}

function drawLayers() {
  const target = byId("layer-charts");
  if (target.childElementCount) return;
  target.replaceChildren(...data.arrays.map((array) => {
    const parts = [el("div", {}, el("h4", {}, "weights"), weightChart(array, 240))];
    const [position, name] = array.uses[0];
    const layer = data.graphs[position].layers[name];
    for (const [key, title, unit] of RANGES) {
      if (layer?.[key]) parts.push(el("div", {}, el("h4", {}, title), rangeChart(layer[key], title, unit, 240)));
    }
    return el("section", { class: "layer", "aria-label": array.name }, el("h3", {}, array.name, " ", usesOf(array)),
      el("div", { class: "row" }, parts));
  }));
}

function setGraph(position) {
  Object.assign(state, { graph: position, stage: data.graphs[position].stages.length - 1, selected: null, open: null });
  byId("stage").max = state.stage;
  byId("graph-choice").value = position;
  show({ refit: true });
}

// -- controls

function onKey(event) {
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!view || event.ctrlKey || event.metaKey || event.altKey || byId("tab-graph").hidden) return;
  const { width, height } = view.canvas.getBoundingClientRect();
  const doing = {
    "/": () => byId("search").focus(), f: () => view.fit(), 0: () => view.fitAll(),
    "+": () => view.zoom(1.25, width / 2, height / 2), "=": () => view.zoom(1.25, width / 2, height / 2),
    "-": () => view.zoom(0.8, width / 2, height / 2),
    "[": () => setStage(state.stage - 1), "]": () => setStage(state.stage + 1),
    Escape: () => pick(null),
    Enter: () => { if (state.selected?.startsWith("g ")) fold(Number(state.selected.slice(2))); },
  };
  if (event.key.startsWith("Arrow") && event.target.closest("[role=tab]")) return;
  if (event.key === "Enter" && event.target.closest("button, a, summary")) return;
  const action = event.key.startsWith("Arrow") ? () => walk(event.key) : doing[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function listen() {
  byId("search").addEventListener("input", (event) => search(event.target.value));
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") choose(Math.max(0, state.at));
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      point(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Escape") {
      event.target.value = "";
      search("");
    }
  });
  byId("search").addEventListener("blur", () => { byId("found").hidden = true; });
  byId("search").addEventListener("focus", (event) => { if (event.target.value) search(event.target.value); });
  byId("stage").addEventListener("input", (event) => setStage(Number(event.target.value)));
  const press = { "fold-all": foldAll, "unfold-all": unfoldAll, fit: () => view.fitAll() };
  for (const [id, action] of Object.entries(press)) byId(id).addEventListener("click", action);
  for (const key of ["plumbing", "changes"]) {
    byId(key).addEventListener("change", (event) => {
      state[key] = event.target.checked;
      show({ keep: state.selected ?? nearestBox() });
    });
  }
  byId("graph-choice").addEventListener("change", (event) => setGraph(Number(event.target.value)));
  byId("tile-zoom").addEventListener("input", drawTiles);
  byId("tile-order").addEventListener("change", drawTiles);
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => showTab(tab.dataset.tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  });
  // Node names in the tables lead to the graph.
  document.addEventListener("click", (event) => {
    const code = event.target.closest("#tab-coverage td code");
    if (code?.textContent.startsWith("%")) go(code.textContent.slice(1));
  });
  document.addEventListener("keydown", onKey);
}

listen();
if (!view) {
  byId("canvas").append(el("p", { class: "empty" }, "No graph has run yet: call the model, then draw it."));
  document.querySelector("#tab-graph .tools").hidden = true;
} else {
  byId("graph-choice").replaceChildren(...data.graphs.map((one, i) => el("option", { value: i }, `graph ${one.label}`)));
  byId("graph-field").hidden = data.graphs.length < 2;
  setGraph(0);
}
