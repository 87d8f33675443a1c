// Small charts: distributions and tile maps.

function histogramChart(found, label, width = 280) {
  const height = 92;
  const base = height - 18;
  const top = Math.max(...found.counts, 1);
  const step = width / found.counts.length;
  const chart = svg("svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `${label}: ${number(found.values)} values from ${short(found.min)} to ${short(found.max)}, mean ${short(found.mean)}, standard deviation ${short(found.std)}`,
  });
  found.counts.forEach((count, i) => {
    if (!count) return;
    const tall = Math.max(1, (base - 6) * (count / top));
    const from = found.min + ((found.max - found.min) * i) / found.counts.length;
    const bar = { x: i * step + 0.5, y: base - tall, width: Math.max(step - 1, 0.5), height: tall };
    chart.append(svg("rect", { ...bar, class: "bar" }, svg("title", {}, `from ${short(from)}: ${number(count)}`)));
  });
  chart.append(svg("path", { d: `M0 ${base + 0.5}H${width}`, class: "axis" }));
  const tick = (x, anchor, value) =>
    chart.append(svg("text", { x, y: height - 5, "text-anchor": anchor }, short(value)));
  tick(0, "start", found.min);
  tick(width, "end", found.max);
  const zero = (-found.min / (found.max - found.min)) * width;
  if (zero > 50 && zero < width - 50) {
    chart.append(svg("path", { d: `M${zero} 2V${base}`, class: "axis dashed" }));
    tick(zero, "middle", 0);
  }
  return chart;
}

function weightChart(array, width) {
  const found = array.weights;
  if (found.hidden) return [el("p", { class: "dim" }, found.hidden)];
  const notes = [`mean ${short(found.mean)}`, `σ ${short(found.std)}`];
  if (found.zero) notes.push(`${percent(found.zero)} zeros`);
  if (found.odd) notes.push(`${number(found.odd)} not finite`);
  if (found.sampled) notes.push("an even sample of the values");
  return [histogramChart(found, `weights of ${array.name}`, width), el("p", { class: "dim" }, notes.join(", "))];
}

function rangeChart(found, label, unit, width) {
  if (found.uncalibrated) return [el("p", { class: "dim" }, "not calibrated: there was no data")];
  if (found.range === "dynamic") return [el("p", { class: "dim" }, "the abs-max of each input vector")];
  if (found.histogram) {
    const what = found.dims.map(([name]) => `${name}s`).reverse().join(" of ");
    return [
      histogramChart(found.histogram, label, width),
      el("p", { class: "dim" }, `${number(found.histogram.values)} ranges, of ${what}, ${unit}`),
    ];
  }
  const values = found.values ?? [];
  const most = Math.max(...values, 1e-30);
  const dims = found.dims ?? [];
  const what = dims.map(([name]) => name).reverse().join(" of ");
  const place = (i) => {
    let rest = i;
    return dims.slice().reverse().map(([name, size]) => {
      const at = rest % size;
      rest = Math.floor(rest / size);
      return `${name} ${at}`;
    }).join(" of ");
  };
  const sign = found.codes === "unsigned" ? "" : "±";
  return [
    el("div", { class: "bars", role: "img", "aria-label": `${label}: ${values.map(short).join(", ")}` },
      values.map((value, i) => {
        const bar = el("i", { title: `${place(i)}: ${sign}${short(value)}` });
        bar.style.height = `${Math.max(2, 46 * (value / most))}px`;
        return bar;
      })),
    el("p", { class: "dim" }, values.length === 1
      ? `${sign}${short(values[0])} ${unit}`
      : `${sign}${short(Math.min(...values))} to ${sign}${short(most)} ${unit}, a bar for each ${what}`),
  ];
}

// -- tiles

function tileAt(array, tile) {
  const [rows, cols] = array.grid;
  const place = tile - array.first;
  const group = Math.floor(place / (rows * cols));
  const r = Math.floor((place % (rows * cols)) / cols);
  const c = place % cols;
  const high = array.row_bounds[r + 1] - array.row_bounds[r];
  const wide = array.col_bounds[c + 1] - array.col_bounds[c];
  const share = (high * wide * array.columns_per_weight) / (array.tile_rows * array.tile_cols);
  return { group, r, c, high, wide, share };
}

function tileText(array, tile) {
  const at = tileAt(array, tile);
  const group = array.groups > 1 ? `group ${at.group}, ` : "";
  const inputs = `inputs ${array.row_bounds[at.r]}…${array.row_bounds[at.r + 1] - 1}`;
  const outputs = `outputs ${array.col_bounds[at.c]}…${array.col_bounds[at.c + 1] - 1}`;
  return `t${tile}: ${array.name}, ${group}${inputs}, ${outputs}, ${percent(at.share)} used`;
}

// Map of an array's tiles, to scale: `unit` px a cell; groups side by side, at most `width` px.
function tileMap(array, unit, width, show) {
  const [rows, cols] = array.grid;
  const [tall, wide] = [array.tile_rows * unit, array.tile_cols * unit];
  const gap = Math.max(1.5, Math.min(4, wide / 10));
  const block = { wide: cols * (wide + gap) - gap, tall: rows * (tall + gap) - gap };
  const space = array.groups > 1 ? gap * 2.5 : 0;
  const across = Math.max(1, Math.min(array.groups, Math.floor((width + space) / (block.wide + space))));
  const down = Math.ceil(array.groups / across);
  const size = {
    width: across * (block.wide + space) - space + 2, height: down * (block.tall + space) - space + 2,
  };
  const where = (tile) => {
    const at = tileAt(array, tile);
    return {
      x: 1 + (at.group % across) * (block.wide + space) + at.c * (wide + gap),
      y: 1 + Math.floor(at.group / across) * (block.tall + space) + at.r * (tall + gap),
      at,
    };
  };
  let outlines = "";
  const filled = new Map();
  for (let tile = array.first; tile < array.first + array.tiles; tile += 1) {
    const { x, y, at } = where(tile);
    outlines += `M${round(x)} ${round(y)}h${round(wide)}v${round(tall)}h${round(-wide)}z`;
    const w = Math.max(3, at.wide * array.columns_per_weight * unit);
    const h = Math.max(3, at.high * unit);
    const level = Math.round(20 * at.share) / 20;
    const part = `M${round(x)} ${round(y)}h${round(w)}v${round(h)}h${round(-w)}z`;
    filled.set(level, (filled.get(level) ?? "") + part);
  }
  const cursor = svg("rect", { width: wide, height: tall, class: "cursor", visibility: "hidden" });
  const map = svg("svg", {
    class: "tiles", viewBox: `0 0 ${round(size.width)} ${round(size.height)}`,
    width: round(size.width), height: round(size.height), role: "img",
    "aria-label": `${array.name}: ${tilesText(array)} of ${array.tile_rows}×${array.tile_cols}, ${percent(array.used)} used`,
  }, svg("path", { d: outlines, class: "tile" }));
  for (const [level, path] of filled) {
    const cells = svg("path", { d: path, class: "cells" });
    cells.style.fill = shade(Math.max(0.45, level));
    map.append(cells);
  }
  map.append(cursor);
  const find = (event) => {
    const box = map.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * size.width - 1;
    const y = ((event.clientY - box.top) / box.height) * size.height - 1;
    const [gx, gy] = [Math.floor(x / (block.wide + space)), Math.floor(y / (block.tall + space))];
    const c = Math.floor((x - gx * (block.wide + space)) / (wide + gap));
    const r = Math.floor((y - gy * (block.tall + space)) / (tall + gap));
    const group = gy * across + gx;
    const inside = gx >= 0 && gx < across && c >= 0 && c < cols && r >= 0 && r < rows;
    return inside && group < array.groups ? array.first + (group * rows + r) * cols + c : null;
  };
  map.addEventListener("pointermove", (event) => {
    const tile = find(event);
    if (tile === null) return cursor.setAttribute("visibility", "hidden");
    const { x, y } = where(tile);
    for (const [name, value] of [["x", x], ["y", y], ["visibility", "visible"]]) cursor.setAttribute(name, value);
    return show(tileText(array, tile));
  });
  map.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    show("");
  });
  return map;
}
