// The whole picture in a corner, with a frame around what is seen; a click or drag moves there.
// A long picture is drawn wider than it is, so that it can be seen at all.

const MAP = { least: 70, wide: 150, tall: 300 };

class Minimap {
  constructor(view, element) {
    this.view = view;
    this.element = element;
    this.boxes = null;
    const move = (event) => {
      if (!event.buttons) return;
      const box = element.getBoundingClientRect();
      const { width, height } = view.canvas.getBoundingClientRect();
      view.x = width / 2 - ((event.clientX - box.left) / this.across) * view.scale;
      view.y = height / 2 - ((event.clientY - box.top) / this.down) * view.scale;
      view.apply();
    };
    element.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      element.setPointerCapture(event.pointerId);
      move(event);
    });
    element.addEventListener("pointermove", move);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Paint the boxes once for each layout.
  draw() {
    const { layout, places } = this.view;
    const dense = window.devicePixelRatio || 1;
    const scale = Math.min(MAP.wide / layout.width, MAP.tall / layout.height);
    const width = Math.max(MAP.least, Math.ceil(layout.width * scale));
    const height = Math.max(MAP.least, Math.ceil(layout.height * scale));
    this.across = width / layout.width;
    this.down = height / layout.height;
    Object.assign(this.element, { width: width * dense, height: height * dense });
    this.element.style.width = `${width}px`;
    this.element.style.height = `${height}px`;
    this.boxes = document.createElement("canvas");
    Object.assign(this.boxes, { width: width * dense, height: height * dense });
    const paint = this.boxes.getContext("2d");
    const colours = getComputedStyle(document.documentElement);
    const colour = (name) => colours.getPropertyValue(name);
    paint.scale(this.across * dense, this.down * dense);
    for (const { x, y, width: wide, height: tall, item } of places.values()) {
      const look = item.card?.look;
      paint.globalAlpha = item.inner ? 0.12 : 1;
      paint.fillStyle = colour(look === "analog" ? "--full" : item.inner || look === "group" ? "--group-line" : "--edge");
      paint.fillRect(x, y, wide, Math.max(tall, 0.8 / this.down));
    }
    this.frame();
  }

  frame() {
    if (!this.boxes) return;
    const { view, element } = this;
    const { width, height } = view.canvas.getBoundingClientRect();
    const dense = window.devicePixelRatio || 1;
    const [across, down] = [this.across, this.down].map((scale) => (scale * dense) / view.scale);
    const paint = element.getContext("2d");
    const seen = [-view.x * across, -view.y * down, width * across, height * down];
    paint.clearRect(0, 0, element.width, element.height);
    paint.drawImage(this.boxes, 0, 0);
    paint.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    paint.lineWidth = 2;
    paint.strokeRect(...seen);
    if (seen[3] < 4) paint.strokeRect(0, seen[1], element.width, 2);
    const all = seen[0] <= 0 && seen[1] <= 0 && seen[0] + seen[2] >= element.width && seen[1] + seen[3] >= element.height;
    element.hidden = all;
  }
}
