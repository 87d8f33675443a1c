// The graph of one stage, with groups folded or open: what is visible, and where it lies.

const PLUMBING = new Set(["weight", "size", "region"]);
const FITS = 70; // boxes that are open at first
const FRAME = { top: 32, side: 12 }; // between the border of an open group and what is in it

const text = document.createElement("canvas").getContext("2d");
const FONT = {
  name: "600 12.5px system-ui, sans-serif",
  note: "11px system-ui, sans-serif",
  type: "10.5px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
};
const widths = new Map();

function widthOf(string, style) {
  const key = style + string;
  if (!widths.has(key)) {
    text.font = FONT[style];
    widths.set(key, text.measureText(string).width);
  }
  return widths.get(key);
}

function clip(string, most) {
  return string.length > most ? `${string.slice(0, most - 1)}…` : string;
}

function clipFront(string, most) {
  return string.length > most ? `…${string.slice(1 - most)}` : string;
}

// Nodes of a stage with, if `before` is given, what changed since it: {nodes: Map, children}.
function stageGraph(data, graph, position, plumbing, compare) {
  const stage = graph.stages[position];
  const nodes = new Map();
  const add = (row, home, order, change) => {
    const line = data.lines[row];
    nodes.set(line.name, { line, home, order, change, edges: [...line.inputs], members: [line] });
  };
  stage.lines.forEach((row, i) => add(row, stage.home[i], i, ""));
  const before = compare && position > 0 ? graph.stages[position - 1] : null;
  if (before && before !== stage) {
    const old = new Map();
    before.lines.forEach((row, i) => old.set(data.lines[row].name, { row, i }));
    for (const node of nodes.values()) {
      const was = old.get(node.line.name);
      node.change = !was ? "added" : differs(data.lines[was.row], node.line) ? "changed" : "";
      if (was) node.before = data.lines[was.row];
    }
    let order = 0;
    for (const { row, i } of old.values()) {
      const line = data.lines[row];
      const now = nodes.get(line.name);
      if (now) order = now.order;
      else add(row, before.home[i], order + 0.5, "removed");
    }
    for (const { row } of old.values()) {
      const node = nodes.get(data.lines[row].name);
      for (const name of data.lines[row].inputs) {
        if (nodes.get(name)?.change === "removed" && !node.edges.includes(name)) {
          node.edges.push(name);
        }
      }
    }
  }
  if (!plumbing) {
    for (const [name, node] of nodes) if (PLUMBING.has(node.line.kind)) nodes.delete(name);
  }
  for (const node of nodes.values()) node.edges = node.edges.filter((name) => nodes.has(name));
  const lines = new Map([...nodes].map(([name, node]) => [name, node.line]));
  const alias = mergeViews(nodes);
  return { nodes, lines, alias, tree: tree(data, nodes) };
}

// Views that follow each other share the box of the first. Result: that box of each of the others.
function mergeViews(nodes) {
  const users = new Map();
  for (const node of nodes.values()) {
    for (const name of new Set(node.edges)) users.set(name, (users.get(name) ?? 0) + 1);
  }
  const alias = new Map();
  const isPlain = (node) => node.line.kind === "view" && !node.change;
  for (const [name, node] of nodes) {
    if (!isPlain(node) || node.edges.length !== 1) continue;
    const [input] = node.edges;
    const head = alias.get(input) ?? input;
    const into = nodes.get(head);
    if (users.get(input) !== 1 || into === node || !isPlain(into) || into.home !== node.home) continue;
    if (into.members.at(-1).name !== input) continue;
    into.members.push(node.line);
    alias.set(name, head);
  }
  for (const name of alias.keys()) nodes.delete(name);
  for (const node of nodes.values()) {
    node.edges = [...new Set(node.edges.map((name) => alias.get(name) ?? name))];
  }
  return alias;
}

function differs(a, b) {
  return a.text !== b.text || a.type !== b.type;
}

// Groups with their members, by number; -1 is the whole graph.
function tree(data, nodes) {
  const groups = new Map([[-1, { id: -1, parent: null, groups: [], nodes: [], order: 0 }]]);
  const enter = (number, order) => {
    if (groups.has(number)) return groups.get(number);
    const [parent, label, path, call] = data.groups[number];
    const group = {
      id: number, parent, label, path, call, key: `${path}#${call}`, groups: [], nodes: [], order,
    };
    groups.set(number, group);
    enter(parent, order).groups.push(number);
    return group;
  };
  for (const node of nodes.values()) enter(node.home, node.order).nodes.push(node.line.name);
  summarise(data, nodes, groups, -1);
  return groups;
}

function summarise(data, nodes, groups, number) {
  const group = groups.get(number);
  const sum = { boxes: 0, layers: 0, arrays: new Set(), changes: 0, bad: 0 };
  for (const name of group.nodes) {
    const { line, change } = nodes.get(name);
    sum.boxes += 1;
    sum.changes += change ? 1 : 0;
    sum.bad += line.rule === "unsupported" ? 1 : 0;
    if (line.array >= 0) {
      sum.layers += 1;
      sum.arrays.add(line.array);
    }
  }
  for (const child of group.groups) {
    const part = summarise(data, nodes, groups, child);
    for (const key of ["boxes", "layers", "changes", "bad"]) sum[key] += part[key];
    for (const array of part.arrays) sum.arrays.add(array);
  }
  let cells = 0;
  let used = 0;
  sum.tiles = 0;
  for (const number of sum.arrays) {
    const array = data.arrays[number];
    sum.tiles += array.tiles;
    cells += array.tiles * array.tile_rows * array.tile_cols;
    used += array.used * array.tiles * array.tile_rows * array.tile_cols;
  }
  sum.used = cells ? used / cells : 0;
  group.sum = sum;
  return sum;
}

// The groups to open at first: level by level, as long as what is seen fits.
function openAtFirst(groups) {
  const open = new Set();
  let seen = groups.get(-1).nodes.length + groups.get(-1).groups.length;
  let level = groups.get(-1).groups.slice();
  while (level.length) {
    let more = 0;
    for (const number of level) {
      more += groups.get(number).nodes.length + groups.get(number).groups.length - 1;
    }
    if (seen + more > FITS) break;
    seen += more;
    for (const number of level) open.add(groups.get(number).key);
    level = level.flatMap((number) => groups.get(number).groups);
  }
  return open;
}

// Lay out what is visible. Result: the root level with nested levels in `inner`.
function layoutGraph(data, stage, open) {
  const { nodes, tree: groups } = stage;
  const isOpen = (number) => number === -1 || open.has(groups.get(number).key);
  const chain = (home) => {
    const path = [];
    for (let at = home; at !== null; at = at === -1 ? null : groups.get(at).parent) path.unshift(at);
    const folded = path.findIndex((number) => !isOpen(number));
    return folded < 0 ? { path, folded: null } : { path: path.slice(0, folded), folded: path[folded] };
  };
  const shown = new Map();
  for (const [name, node] of nodes) {
    const { path, folded } = chain(node.home);
    shown.set(name, { id: folded === null ? `n ${name}` : `g ${folded}`, path });
  }
  const edges = new Map([...groups.keys()].map((number) => [number, new Map()]));
  const connect = (level, from, to, net, ghost) => {
    const key = `${from}|${to}|${net}`;
    const known = edges.get(level).get(key);
    if (known) known.ghost &&= ghost;
    else edges.get(level).set(key, { from, to, net, ghost });
  };
  for (const [name, node] of nodes) {
    const target = shown.get(name);
    for (const input of node.edges) {
      const source = shown.get(input);
      if (source.id === target.id) continue;
      const net = source.id;
      const ghost = node.change === "removed" || nodes.get(input).change === "removed";
      let common = 0;
      while (source.path[common + 1] !== undefined && source.path[common + 1] === target.path[common + 1]) {
        common += 1;
      }
      const child = (end, depth) => depth + 1 < end.path.length ? `g ${end.path[depth + 1]}` : end.id;
      for (let depth = source.path.length - 1; depth > common; depth -= 1) {
        connect(source.path[depth], child(source, depth), `out ${net}`, net, ghost);
      }
      connect(source.path[common], child(source, common), child(target, common), net, ghost);
      for (let depth = common + 1; depth < target.path.length; depth += 1) {
        connect(target.path[depth], `in ${net}`, child(target, depth), net, ghost);
      }
    }
  }
  const arrange = (number) => {
    const group = groups.get(number);
    const items = new Map();
    const inner = new Map();
    for (const name of group.nodes) {
      const node = nodes.get(name);
      const card = cardOf(data, node, group);
      items.set(`n ${name}`, { id: `n ${name}`, order: node.order, node, card, ...card.size });
    }
    for (const child of group.groups) {
      const at = groups.get(child);
      const item = { id: `g ${child}`, order: at.order, group: at };
      if (isOpen(child)) {
        item.inner = arrange(child);
        item.width = item.inner.width + 2 * FRAME.side;
        item.height = item.inner.height + FRAME.top + FRAME.side;
        inner.set(item.id, item.inner);
      } else {
        item.card = groupCard(at);
        Object.assign(item, item.card.size);
      }
      items.set(item.id, item);
    }
    const level = [...edges.get(number).values()];
    for (const edge of level) {
      for (const end of [edge.from, edge.to]) {
        const port = end.startsWith("in ") ? "in" : end.startsWith("out ") ? "out" : null;
        if (port && !items.has(end)) {
          const source = end.slice(port.length + 1);
          const order = source.startsWith("n ") ? nodes.get(source.slice(2)).order : 0;
          items.set(end, { id: end, width: SLOT, height: 0, order, port });
        }
      }
      edge.fromX = inner.get(edge.from)?.ports.get(`out ${edge.net}`) ?? 0;
      edge.toX = inner.get(edge.to)?.ports.get(`in ${edge.net}`) ?? 0;
    }
    const list = [...items.values()];
    const placed = layoutLevel(list, level);
    const ports = new Map();
    for (const item of list) {
      Object.assign(item, placed.boxes.get(item.id));
      if (item.port) ports.set(item.id, item.x + item.width / 2 - placed.width / 2);
    }
    // Edges go on to the frame around the level.
    level.forEach((edge, i) => {
      const line = placed.lines[i];
      if (edge.from.startsWith("in ")) {
        line.unshift([line[0][0], -FRAME.top]);
        if (placed.starts[i]) placed.starts[i] += 1;
      }
      if (edge.to.startsWith("out ")) line.push([line.at(-1)[0], placed.height + FRAME.side]);
    });
    // A title needs room; ports stay where they are from the middle.
    const least = number === -1 ? 0 : widthOf(groupTitle(group), "name") + 40;
    const side = Math.max(0, (least - placed.width) / 2);
    for (const item of list) item.x += side;
    for (const line of placed.lines) for (const point of line) point[0] += side;
    return {
      items: list.filter((item) => !item.port), edges: level, lines: placed.lines, starts: placed.starts, ports,
      width: placed.width + 2 * side, height: placed.height,
    };
  };
  return arrange(-1);
}

function groupTitle(group) {
  return group.label + (group.call > 1 ? `  (call ${group.call})` : "");
}

function shortOp(op) {
  return op.replace(/^(aten|analogc|prims)\./, "").split(".")[0];
}

function shortLayer(layer, path) {
  return path && layer.startsWith(`${path}.`) ? layer.slice(path.length + 1) : layer;
}

function tilesText(array) {
  const grid = `${array.grid[0]}×${array.grid[1]}`;
  return array.tiles === 1 ? "1 tile" : array.groups > 1 ? `${array.groups}×${grid} tiles` : `${grid} tiles`;
}

// What is written on the box of a node: [[style, text], ...], and the size that it needs.
function cardOf(data, node, group) {
  const { line } = node;
  const type = ["type", clip(node.members.at(-1).type, 34)];
  let rows;
  let look = line.kind;
  if (line.array >= 0) {
    const array = data.arrays[line.array];
    look = "analog";
    const name = clipFront(shortLayer(line.layer, group.path), 34);
    rows = [["name", name], ["note", `${array.op} · ${tilesText(array)} · ${percent(array.used)}`], type];
  } else if (line.kind === "input" || line.kind === "output") {
    rows = line.kind === "input" ? [["name", clip(line.name, 30)], type] : [["name", "output"]];
  } else if (line.kind === "op") {
    if (line.rule === "unsupported") look = "unsupported";
    else if (line.rule === "choice") look = "choice";
    else if (line.rule === "selected") look = "selected-analog";
    rows = [["name", clip(shortOp(line.op), 30)], type];
  } else {
    rows = [["note", clip(node.members.map((member) => shortOp(member.op)).join(" → "), 36)], type];
  }
  return sized(rows, look);
}

function groupCard(group) {
  const { sum } = group;
  const parts = [`${sum.boxes} nodes`];
  if (sum.layers) parts.push(`${sum.layers} analog`, `${sum.tiles} tile${sum.tiles === 1 ? "" : "s"}`);
  const rows = [["name", clipFront(groupTitle(group), 34)], ["note", parts.join(" · ")]];
  return sized(rows, "group", 14);
}

function sized(rows, look, more = 0) {
  const wide = Math.max(...rows.map(([style, string]) => widthOf(string, style)));
  return { rows, look, size: { width: Math.ceil(wide) + 24, height: rows.length * 15 + 12 + more } };
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : "<0.1"} %`;
}
