// The panel beside the graph: all about what is selected.

function describeModel(data, graph, actions) {
  const keys = [
    ["/", "search"], ["↑ ↓ ← →", "walk along the edges"], ["Enter", "open or fold a group"],
    ["f, 0", "fit the picture"], ["+, −", "zoom"], ["[ , ]", "pass before, pass after"], ["Esc", "select nothing"],
  ];
  const layers = graph.stages.at(-1).lines.map((row) => data.lines[row]).filter((line) => line.array >= 0);
  return [
    el("h2", {}, "Nothing selected"),
    el("p", {}, "Click a box for its shapes, tiles and converters; click a group to open it. Drag to move, turn the wheel to zoom."),
    el("dl", { class: "keys" }, keys.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    layers.length ? el("h3", {}, `Layers on tiles (${layers.length})`) : null,
    el("ul", { class: "links" }, layers.map((line) => {
      const array = data.arrays[line.array];
      const chip = el("i", { class: "chip" });
      chip.style.background = shade(array.used);
      return el("li", {}, chip, link(line.layer, () => actions.go(line.name)), el("span", { class: "dim" }, ` ${tilesText(array)}`));
    })),
  ];
}

function link(label, go) {
  return el("button", { class: "link", type: "button", onclick: go }, label);
}

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value && value.length !== 0)
    .map(([name, value]) => [el("dt", {}, name), el("dd", {}, ...[value].flat())]));
}

function describeGroup(data, stage, group, actions) {
  const { sum } = group;
  const inside = [...stage.nodes.values()].filter((node) => {
    for (let at = node.home; at !== -1 && at !== null; at = stage.tree.get(at).parent) if (at === group.id) return true;
    return false;
  });
  const macs = inside.reduce((total, node) => total + (node.line.macs || 0), 0);
  return [
    el("h2", {}, groupTitle(group)),
    facts([
      ["module", group.path], ["nodes", number(sum.boxes)], ["analog layers", number(sum.layers)],
      ["tiles", sum.tiles ? `${number(sum.tiles)}, ${percent(sum.used)} used` : ""], ["MACs", macs ? short(macs) : ""],
    ]),
    el("p", {}, el("button", { type: "button", onclick: () => actions.toggle(group.id) }, "Open or fold")),
    el("ul", { class: "links" }, inside.filter((node) => node.line.array >= 0).map(({ line }) =>
      el("li", {}, link(line.layer, () => actions.go(line.name)), el("span", { class: "dim" }, ` ${tilesText(data.arrays[line.array])}`)))),
  ];
}

function describeNode(data, graph, stage, node, actions) {
  const { line } = node;
  const kinds = {
    input: "input", output: "output", weight: "computed from parameters", size: "size", region: "region",
    view: "moves data", op: "digital",
  };
  const array = data.arrays[line.array];
  const kind = array || line.rule === "selected" ? "analog" : line.rule === "unsupported" ? "unsupported" : kinds[line.kind];
  const users = [...stage.nodes.values()].filter((other) => other.edges.includes(line.name));
  const named = (names) => names.map((name) => el("div", {}, link(`%${name}`, () => actions.go(name)),
    el("code", { class: "dim" }, ` ${stage.lines.get(name).type}`)));
  const title = node.members.map((member) => `%${member.name}`).join(" → ");
  const parts = [
    el("h2", {}, line.layer || (line.kind === "output" ? "output" : title)),
    el("p", {}, el("span", { class: `kind ${kind}` }, kind), node.change ? el("span", { class: `kind ${node.change}` }, node.change) : null),
    facts([
      ["operation", node.members.map((member) => el("div", {}, el("code", {}, member.op)))],
      ["shape", line.type && node.members.map((member) => el("div", {}, el("code", {}, member.type)))],
      ["node", line.layer ? el("code", {}, `%${line.name}`) : ""],
      ["module", line.module], ["source", line.source && el("code", {}, line.source)],
      ["MACs", line.macs ? short(line.macs) : ""],
      ["why digital", line.why],
      ["inputs", named(line.inputs.filter((name) => stage.lines.has(name)))],
      ["read by", named(users.map((user) => user.line.name))],
    ]),
  ];
  if (array) parts.push(...describeTiles(data, graph, line, array, actions));
  parts.push(el("h3", {}, "Printed form"));
  if (node.change === "changed") {
    parts.push(el("pre", { class: "minus" }, node.before.text), el("pre", { class: "plus" }, line.text));
  } else parts.push(...node.members.map((member) => el("pre", {}, member.text)));
  return parts;
}

function describeTiles(data, graph, line, array, actions) {
  const [rows, cols] = array.grid;
  const said = el("p", { class: "dim said", "aria-live": "polite" });
  const say = (string) => { said.textContent = string || tileText(array, array.first); };
  say("");
  const unit = Math.min(90 / Math.max(array.tile_rows, array.tile_cols), 300 / (cols * array.tile_cols * 1.06));
  const layer = graph.layers[line.name];
  const others = array.uses.filter(([, name]) => name !== line.name).map(([, name]) => name);
  const parts = [
    el("h3", {}, "Tiles"),
    facts([
      ["array", array.name], ["weight", array.shape.join(" × ")],
      ["grid", `${array.groups > 1 ? `${array.groups} groups of ` : ""}${rows} × ${cols} tiles of ${array.tile_rows} × ${array.tile_cols}`],
      ["tile ids", array.tiles === 1 ? `t${array.first}` : `t${array.first} … t${array.first + array.tiles - 1}`],
      ["cells used", percent(array.used)], ["also used by", others.map((name) => el("div", {}, link(`%${name}`, () => actions.go(name))))],
    ]),
    el("div", { class: "scroll" }, tileMap(array, unit, 300, say)), said,
    el("p", {}, link("Show in the tile map", () => actions.tiles(line.array))),
    el("h3", {}, "Weights"), ...weightChart(array, 300),
  ];
  if (!layer) return parts;
  parts.push(el("h3", {}, "Converters and devices"), facts([
    ["DAC", converterText(layer.dac)], ["ADC", converterText(layer.adc)], ["device", layer.device],
    ["output noise", layer.noise ? `σ ${layer.noise}` : ""], ["weight scale", `a ${layer.scale}`],
    ...Object.entries(layer.parts),
    ["programmed", array.seconds === null ? "" : `${short(array.seconds)} s ago`],
  ]));
  for (const [name, title, unit] of RANGES) {
    if (layer[name]) parts.push(el("h3", {}, title), ...rangeChart(layer[name], title, unit, 300));
  }
  return parts;
}

const RANGES = [
  ["dac", "DAC ranges", "in units of the input"],
  ["adc", "ADC ranges", "in full-scale inputs on full-scale weights"],
];

function converterText(found) {
  if (!found) return "ideal";
  const column = found.per_column ? ", for each column" : "";
  const side = found.codes === "unsigned" ? "steps from 0" : "steps a side";
  return [`${found.bits} bits, ${found.steps} ${side}, ${found.range} range${column}`, ...found.notes].join(", ");
}
