// The picture of a laid out graph: drawing, panning, zooming, selection.

class View {
  constructor(data, canvas, events) {
    this.data = data;
    this.canvas = canvas;
    this.events = events;
    this.x = 0;
    this.y = 0;
    this.scale = 1;
    this.elements = new Map();
    this.places = new Map();
    this.links = [];
    this.stageElement = svg("g");
    this.root = svg("svg", { class: "graph", "aria-hidden": "true" }, this.tips(), this.stageElement);
    canvas.prepend(this.root);
    this.listen();
  }

  tips() {
    const tip = (id, name) =>
      svg("marker", {
        id, viewBox: "0 0 8 8", refX: 7.4, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto",
      }, svg("path", { d: "M0.5 1L7.5 4L0.5 7z", class: name }));
    return svg("defs", {}, tip("tip", "tip"), tip("tip-lit", "tip lit"));
  }

  // -- drawing

  draw(layout) {
    this.elements.clear();
    this.places.clear();
    this.links = [];
    this.layout = layout;
    const drawn = svg("g");
    this.level(drawn, layout, 0, 0);
    this.lit = svg("g", { class: "edges lit" });
    this.stageElement.replaceChildren(drawn, this.lit);
  }

  level(parent, level, left, top) {
    for (const item of level.items) {
      const x = left + item.x;
      const y = top + item.y;
      this.places.set(item.id, { x, y, width: item.width, height: item.height, item });
      if (item.inner) parent.append(this.openGroup(item, x, y));
    }
    const lines = svg("g", { class: "edges" });
    level.edges.forEach((edge, i) => {
      const points = level.lines[i].map(([x, y]) => [x + left, y + top]);
      const arrives = this.arrives(level, edge);
      const path = svg("path", {
        d: pathOf(points.slice(level.starts[i])),
        class: edge.ghost ? "ghost" : null,
        "marker-end": arrives ? "url(#tip)" : null,
      });
      this.links.push({ points, edge, arrives });
      lines.append(path);
    });
    parent.append(lines);
    for (const item of level.items) {
      if (item.inner) this.level(parent, item.inner, left + item.x + FRAME.side, top + item.y + FRAME.top);
      else parent.append(this.box(item, left + item.x, top + item.y));
    }
  }

  arrives(level, edge) {
    level.byId ??= new Map(level.items.map((item) => [item.id, item]));
    const item = level.byId.get(edge.to);
    return item !== undefined && !item.inner;
  }

  openGroup(item, x, y) {
    const { group } = item;
    const element = svg("g", { class: `open ${group.sum.changes ? "touched" : ""}` },
      svg("rect", { x, y, width: item.width, height: item.height, rx: 8 }),
      svg("g", { class: "bar", "data-group": group.id },
        svg("rect", { x, y, width: item.width, height: 24, rx: 8, class: "hit" }),
        svg("path", { d: `M${x + 10} ${y + 9}h9l-4.5 6z`, class: "mark" }),
        svg("text", { x: x + 25, y: y + 16.5, class: "name" }, clipFront(groupTitle(group), 48)),
        svg("title", {}, `${group.path}: click to fold`)));
    this.elements.set(item.id, element);
    return element;
  }

  box(item, x, y) {
    const { card } = item;
    const element = svg("g", {
      class: `box ${card.look} ${item.node?.change || ""} ${item.group?.sum.changes ? "touched" : ""}`,
      "data-id": item.id,
    });
    if (card.look === "group") {
      element.append(svg("rect", { x: x + 4, y: y + 4, width: item.width, height: item.height, rx: 8, class: "under" }));
    }
    const round = card.look === "input" || card.look === "output" ? 14 : 6;
    const rect = svg("rect", { x, y, width: item.width, height: item.height, rx: round, class: "card" });
    element.append(rect);
    if (card.look === "analog") rect.style.fill = shade(this.data.arrays[item.node.line.array].used);
    card.rows.forEach(([style, string], i) => {
      const at = { x: x + item.width / 2, y: y + 18 + 15 * i, class: style };
      element.append(svg("text", at, string));
    });
    if (item.group) this.gauge(element, item, x, y);
    const tip = item.group ? `${item.group.path}: click to open` : item.node.members.map((line) => line.text).join("\n");
    element.append(svg("title", {}, tip));
    this.elements.set(item.id, element);
    return element;
  }

  gauge(element, item, x, y) {
    const { sum } = item.group;
    if (sum.bad) element.classList.add("bad");
    if (!sum.layers) return;
    const at = { x: x + 12, y: y + item.height - 13, height: 6, rx: 3 };
    element.append(svg("rect", { ...at, width: item.width - 24, class: "gauge" }));
    const bar = svg("rect", { ...at, width: Math.max(3, (item.width - 24) * sum.used) });
    bar.style.fill = shade(Math.max(sum.used, 0.35));
    element.append(bar);
  }

  // -- what is lit

  light(id, matches = new Set()) {
    const near = new Set();
    const lit = [];
    for (const { points, edge, arrives } of this.links) {
      if (id === null || ![edge.from, edge.to, edge.net].includes(id)) continue;
      near.add(edge.from).add(edge.to);
      lit.push(svg("path", { d: pathOf(points), "marker-end": arrives ? "url(#tip-lit)" : null }));
    }
    this.lit.replaceChildren(...lit);
    for (const [key, element] of this.elements) {
      element.classList.toggle("selected", key === id);
      element.classList.toggle("near", near.has(key) && key !== id);
      element.classList.toggle("match", matches.has(key));
    }
  }

  // -- where one looks

  apply() {
    this.stageElement.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${this.scale})`);
    this.root.classList.toggle("far", this.scale < 0.35);
    this.events.moved();
  }

  fit() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const wide = this.layout.width + 60;
    const tall = this.layout.height + 60;
    const whole = Math.min(width / wide, height / tall, 1.25);
    // All of it if that can be read; else its beginning.
    this.scale = whole >= 0.5 ? whole : Math.max(whole, Math.min(width / wide, 0.85), 0.3);
    this.x = (width - this.layout.width * this.scale) / 2;
    this.y = whole >= 0.5 ? (height - this.layout.height * this.scale) / 2 : 30;
    if (this.layout.width * this.scale > width) this.centreOnFirst(width);
    this.apply();
  }

  fitAll() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.scale = Math.min(width / (this.layout.width + 60), height / (this.layout.height + 60), 1.25);
    this.x = (width - this.layout.width * this.scale) / 2;
    this.y = (height - this.layout.height * this.scale) / 2;
    this.apply();
  }

  centreOnFirst(width) {
    let first = null;
    for (const place of this.places.values()) {
      if (!place.item.inner && (!first || place.y < first.y)) first = place;
    }
    if (first) this.x = width / 2 - (first.x + first.width / 2) * this.scale;
  }

  zoom(factor, x, y) {
    const scale = Math.min(4, Math.max(0.03, this.scale * factor));
    this.x = x - (x - this.x) * (scale / this.scale);
    this.y = y - (y - this.y) * (scale / this.scale);
    this.scale = scale;
    this.apply();
  }

  centre(id, least = 0.6) {
    const place = this.places.get(id);
    if (!place) return;
    const { width, height } = this.canvas.getBoundingClientRect();
    this.scale = Math.max(this.scale, least);
    this.x = width / 2 - (place.x + place.width / 2) * this.scale;
    this.y = height / 2 - (place.y + Math.min(place.height, height / this.scale) / 2) * this.scale;
    this.apply();
  }

  // Point of the canvas where a box is, to hold it there while the graph around it changes.
  anchor(id) {
    const place = this.places.get(id);
    return place && { x: this.x + (place.x + place.width / 2) * this.scale, y: this.y + place.y * this.scale };
  }

  hold(id, at) {
    const now = this.anchor(id);
    if (!now || !at) return false;
    this.x += at.x - now.x;
    this.y += at.y - now.y;
    this.apply();
    return true;
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      const step = event.deltaMode === 1 ? 0.05 : event.ctrlKey ? 0.01 : 0.0016;
      this.zoom(Math.exp(-event.deltaY * step), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    let grip = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest("button, .legend")) return;
      grip = { x: event.clientX, y: event.clientY, moved: false };
    });
    window.addEventListener("pointermove", (event) => {
      if (!grip) return;
      const [dx, dy] = [event.clientX - grip.x, event.clientY - grip.y];
      if (!grip.moved && Math.hypot(dx, dy) < 4) return;
      grip = { x: event.clientX, y: event.clientY, moved: true };
      canvas.classList.add("gripped");
      this.x += dx;
      this.y += dy;
      this.apply();
    });
    window.addEventListener("pointerup", (event) => {
      const held = grip;
      grip = null;
      canvas.classList.remove("gripped");
      if (!held || held.moved) return;
      const bar = event.target.closest?.("[data-group]");
      const box = event.target.closest?.("[data-id]");
      if (bar) this.events.fold(Number(bar.dataset.group));
      else if (box) this.events.pick(box.dataset.id);
      else if (canvas.contains(event.target)) this.events.pick(null);
    });
  }
}
