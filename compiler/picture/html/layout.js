// Layered layout of one level of the graph: boxes in layers from top to bottom, edges between them.
//
// Layers by longest path, order within a layer by barycentres, positions by least squares under a
// minimum distance. An edge over several layers passes through a slot in each; edges that come out
// of one place share their slots.

const GAP_X = 20;
const GAP_Y = 30;
const SLOT = 8;

// items: [{id, width, height, order, port: "in" | "out" | undefined}]
// edges: [{from, to, net, fromX, toX}], X: where it meets the box, from its centre
// Result: {width, height, boxes: Map id -> {x, y} (top left), lines: [[[x, y], ...]] of each edge,
// starts: the point of each line up to which an earlier one runs along it}.
function layoutLevel(items, edges) {
  const slots = items.map((item) => ({ ...item, real: true }));
  const index = new Map(slots.map((slot, i) => [slot.id, i]));
  const links = edges.map((edge) => ({ a: index.get(edge.from), b: index.get(edge.to), edge }));
  const sequence = breakCycles(slots, links);
  assignLayers(slots, links, sequence);
  const segments = [];
  const routes = links.map(() => []);
  const starts = addSlots(slots, links, segments, routes);
  const layers = inLayers(slots);
  const up = slots.map(() => []);
  const down = slots.map(() => []);
  for (const s of segments) {
    const weight = slots[s.a].real ? (slots[s.b].real ? 1 : 2) : slots[s.b].real ? 2 : 8;
    // Open groups stand under each other by their middle, wherever the edges meet them.
    const shift = slots[s.a].inner || slots[s.b].inner ? 0 : s.ax - s.bx;
    down[s.a].push({ to: s.b, shift, at: s.bx, weight });
    up[s.b].push({ to: s.a, shift: -shift, at: s.ax, weight });
  }
  orderLayers(layers, slots, segments, up, down);
  placeAcross(layers, slots, up, down);
  return { ...finish(slots, layers, links, routes), starts };
}

// A topological order; links that go against it get `reversed`.
function breakCycles(slots, links) {
  const waiting = slots.map(() => 0);
  const out = slots.map(() => []);
  const into = slots.map(() => []);
  for (const link of links) {
    waiting[link.b] += 1;
    out[link.a].push(link);
    into[link.b].push(link);
  }
  const byOrder = slots.map((_, i) => i).sort((i, j) => slots[i].order - slots[j].order || i - j);
  const done = slots.map(() => false);
  const ready = byOrder.filter((i) => waiting[i] === 0);
  const sequence = [];
  let next = 0;
  while (sequence.length < slots.length) {
    if (!ready.length) {
      while (done[byOrder[next]]) next += 1;
      const i = byOrder[next];
      for (const link of into[i]) if (!done[link.a]) link.reversed = true;
      waiting[i] = 0;
      ready.push(i);
    }
    const i = ready.shift();
    if (done[i]) continue;
    done[i] = true;
    sequence.push(i);
    for (const link of out[i]) {
      if (link.reversed) continue;
      waiting[link.b] -= 1;
      if (waiting[link.b] === 0 && !done[link.b]) ready.push(link.b);
    }
  }
  for (const link of links) {
    if (link.reversed) [link.a, link.b] = [link.b, link.a];
  }
  return sequence;
}

function assignLayers(slots, links, sequence) {
  const into = slots.map(() => []);
  const out = slots.map(() => []);
  for (const link of links) {
    into[link.b].push(link.a);
    out[link.a].push(link.b);
  }
  const first = slots.some((slot) => slot.port === "in") ? 1 : 0;
  let last = 0;
  for (const i of sequence) {
    const above = into[i].map((j) => slots[j].layer + 1);
    slots[i].layer = slots[i].port === "in" ? 0 : Math.max(first, ...above);
    if (!slots[i].port) last = Math.max(last, slots[i].layer);
  }
  for (const slot of slots) if (slot.port === "out") slot.layer = last + 1;
  // What reads nothing stands above its first use.
  for (const i of sequence.slice().reverse()) {
    if (slots[i].port || into[i].length || !out[i].length) continue;
    slots[i].layer = Math.max(first, Math.min(...out[i].map((j) => slots[j].layer)) - 1);
  }
}

function addSlots(slots, links, segments, routes) {
  const chains = new Map();
  const drawn = new Map();
  const known = new Set();
  const starts = [];
  links.forEach((link, number) => {
    const { edge, a, b } = link;
    const [ax, bx] = link.reversed ? [edge.toX, edge.fromX] : [edge.fromX, edge.toX];
    const key = link.reversed ? `back ${number}` : `${a} ${edge.net}`;
    if (!chains.has(key)) chains.set(key, []);
    const chain = chains.get(key);
    const length = slots[b].layer - slots[a].layer - 1;
    while (chain.length < length) {
      const layer = slots[a].layer + chain.length + 1;
      chain.push(slots.length);
      slots.push({ width: SLOT, height: 0, order: slots[a].order, layer, real: false });
    }
    const route = [a, ...chain.slice(0, length), b];
    routes[number] = route;
    const shared = Math.min(drawn.get(key) ?? 0, length);
    starts.push(shared ? 2 * shared + 1 : 0);
    drawn.set(key, Math.max(drawn.get(key) ?? 0, length));
    for (let i = 0; i + 1 < route.length; i += 1) {
      const from = i === 0 ? ax : 0;
      const to = i + 2 === route.length ? bx : 0;
      const mark = `${route[i]} ${route[i + 1]} ${from} ${to}`;
      if (known.has(mark)) continue;
      known.add(mark);
      segments.push({ a: route[i], b: route[i + 1], ax: from, bx: to });
    }
  });
  return starts;
}

function inLayers(slots) {
  const layers = [];
  slots.forEach((slot, i) => {
    while (layers.length <= slot.layer) layers.push([]);
    layers[slot.layer].push(i);
  });
  for (const layer of layers) layer.sort((i, j) => slots[i].order - slots[j].order || i - j);
  return layers;
}

function orderLayers(layers, slots, segments, up, down) {
  const rank = new Float64Array(slots.length);
  const settle = (layer) => layer.forEach((i, position) => { rank[i] = position; });
  layers.forEach(settle);
  const below = layers.map(() => []);
  for (const s of segments) below[slots[s.a].layer].push(s);
  const sweeps = Math.max(2, Math.min(12, Math.round(60000 / (segments.length + 1))));
  let best = layers.map((layer) => layer.slice());
  let fewest = countCrossings(below, rank, slots);
  for (let sweep = 0; sweep < sweeps && fewest > 0; sweep += 1) {
    const downwards = sweep % 2 === 0;
    const sequence = downwards ? layers : layers.slice().reverse();
    for (const layer of sequence) {
      const centre = new Map();
      for (const i of layer) {
        const near = downwards ? up[i] : down[i];
        let sum = 0;
        for (const n of near) sum += rank[n.to] + n.at / 1e4;
        centre.set(i, near.length ? sum / near.length : rank[i]);
      }
      layer.sort((i, j) => centre.get(i) - centre.get(j) || rank[i] - rank[j]);
      settle(layer);
    }
    const crossings = countCrossings(below, rank, slots);
    if (crossings < fewest) {
      fewest = crossings;
      best = layers.map((layer) => layer.slice());
    }
  }
  best.forEach((layer, i) => { layers[i] = layer; });
}

function countCrossings(below, rank, slots) {
  let count = 0;
  for (const segments of below) {
    if (segments.length < 2) continue;
    const sorted = segments
      .map((s) => [rank[s.a] + s.ax / 1e4, rank[s.b] + s.bx / 1e4, rank[s.b]])
      .sort((p, q) => p[0] - q[0] || p[1] - q[1]);
    const size = 1 + Math.max(...sorted.map((s) => s[2]));
    const tree = new Int32Array(size + 1);
    sorted.forEach((s, seen) => {
      let left = 0;
      for (let i = s[2] + 1; i > 0; i -= i & -i) left += tree[i];
      count += seen - left;
      for (let i = s[2] + 1; i <= size; i += i & -i) tree[i] += 1;
    });
  }
  return count;
}

function gap(a, b) {
  const between = a.real && b.real ? GAP_X : a.real || b.real ? 12 : 4;
  return (a.width + b.width) / 2 + between;
}

// Slots of one layer as near to `wanted` as their distances allow: least squares, by pooling.
function spread(layer, slots, wanted, weights, x) {
  let offset = 0;
  const pools = [];
  layer.forEach((i, position) => {
    if (position) offset += gap(slots[layer[position - 1]], slots[i]);
    let pool = { sum: (wanted[i] - offset) * weights[i], weight: weights[i], members: [[i, offset]] };
    while (pools.length && pools.at(-1).sum / pools.at(-1).weight > pool.sum / pool.weight) {
      const left = pools.pop();
      left.members.push(...pool.members);
      pool = { sum: left.sum + pool.sum, weight: left.weight + pool.weight, members: left.members };
    }
    pools.push(pool);
  });
  for (const pool of pools) {
    for (const [i, at] of pool.members) x[i] = pool.sum / pool.weight + at;
  }
}

function placeAcross(layers, slots, up, down) {
  const x = new Float64Array(slots.length);
  const wanted = new Float64Array(slots.length);
  const weights = new Float64Array(slots.length).fill(1);
  for (const layer of layers) {
    let at = 0;
    layer.forEach((i, position) => {
      if (position) at += gap(slots[layer[position - 1]], slots[i]);
      x[i] = at;
    });
    for (const i of layer) x[i] -= at / 2;
  }
  const rounds = Math.max(6, Math.min(24, Math.round(200000 / (slots.length + 1))));
  for (let round = 0; round < rounds; round += 1) {
    const both = round >= rounds - 4;
    const downwards = round % 2 === 0;
    for (const layer of downwards ? layers : layers.slice().reverse()) {
      for (const i of layer) {
        const near = both ? up[i].concat(down[i]) : downwards ? up[i] : down[i];
        let sum = 0;
        let weight = 0;
        for (const n of near) {
          sum += n.weight * (x[n.to] - n.shift);
          weight += n.weight;
        }
        wanted[i] = weight ? sum / weight : x[i];
        weights[i] = weight || 0.05;
      }
      spread(layer, slots, wanted, weights, x);
    }
  }
  slots.forEach((slot, i) => { slot.x = x[i]; });
}

function finish(slots, layers, links, routes) {
  let left = Infinity;
  let right = -Infinity;
  for (const slot of slots) {
    left = Math.min(left, slot.x - slot.width / 2);
    right = Math.max(right, slot.x + slot.width / 2);
  }
  if (!slots.length) [left, right] = [0, 0];
  const tops = [];
  const heights = [];
  let y = 0;
  layers.forEach((layer, k) => {
    const ports = layer.every((i) => slots[i].port || !slots[i].real);
    heights.push(Math.max(0, ...layer.map((i) => slots[i].height)));
    tops.push(y);
    const crowd = Math.min(30, layer.length);
    y += heights[k] + (ports && k === 0 ? 16 : GAP_Y + crowd);
  });
  const height = layers.length ? tops.at(-1) + heights.at(-1) : 0;
  const boxes = new Map();
  for (const slot of slots) {
    slot.x -= left;
    slot.y = tops[slot.layer];
    if (slot.real) boxes.set(slot.id, { x: slot.x - slot.width / 2, y: slot.y });
  }
  const lines = links.map((link, number) => {
    const { edge } = link;
    const [ax, bx] = link.reversed ? [edge.toX, edge.fromX] : [edge.fromX, edge.toX];
    const points = [];
    routes[number].forEach((i, position, route) => {
      const slot = slots[i];
      if (position === 0) {
        points.push([slot.x + ax, slot.y + slot.height]);
        points.push([slot.x + ax, tops[slot.layer] + heights[slot.layer]]);
      } else if (position + 1 === route.length) {
        points.push([slot.x + bx, slot.y]);
      } else {
        points.push([slot.x, tops[slot.layer]]);
        points.push([slot.x, tops[slot.layer] + heights[slot.layer]]);
      }
    });
    return link.reversed ? points.reverse() : points;
  });
  return { width: right - left, height, boxes, lines };
}

// SVG path through the points of an edge: straight where it runs down, curved where it turns.
function pathOf(points) {
  let path = `M${round(points[0][0])} ${round(points[0][1])}`;
  for (let i = 1; i < points.length; i += 1) {
    const [x, y] = points[i];
    const [px, py] = points[i - 1];
    if (Math.abs(x - px) < 0.5) {
      if (Math.abs(y - py) > 0.5) path += `L${round(x)} ${round(y)}`;
    } else {
      const bend = (y - py) * 0.5;
      path += `C${round(px)} ${round(py + bend)} ${round(x)} ${round(y - bend)} ${round(x)} ${round(y)}`;
    }
  }
  return path;
}

function round(value) {
  return Math.round(value * 10) / 10;
}
