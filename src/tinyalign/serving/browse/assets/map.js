// The map of the key space: up to 100,000 points on a canvas, to point at, move and zoom.
import { ask, count, make, picture } from "./parts.js";

const REACH = 14; // pixels from a point at which it counts as pointed at
const MARGIN = 24;
const FULL = 65535; // places are uint16
const OPAQUE = 0.75;
const STRETCH = 1.6; // how much wider than high the map may be drawn on a wide screen

const decode = (text, Kind) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Kind(bytes.buffer);
};

export class KeyMap {
  /** open(entry) is called with the entry that was chosen; failed(error) with what went wrong. */
  constructor(canvas, tip, legend, { open, failed }) {
    Object.assign(this, { canvas, tip, legend, open, failed });
    this.entries = new Map(); // row -> promise of the entry
    this.marked = [];
    this.colour = "cluster";
    this.hidden = new Set();
    this.pointers = new Map();
    this.chosen = -1;
    this.whole();
    this._listen();
  }

  /** Show the answer of /api/map. */
  show(data) {
    this.data = data;
    this.xy = decode(data.xy, Uint16Array);
    this.rows = decode(data.rows, Uint32Array);
    this.groups = { cluster: decode(data.cluster, Uint8Array), source: decode(data.source, Uint8Array) };
    this.entries.clear();
    this.chosen = -1;
    this._order();
    this.whole();
  }

  /** Colour by "cluster" or by "source". */
  by(colour) {
    this.colour = colour;
    if (this.data) this._order();
    this.draw();
  }

  /** Ring the points of these rows; those outside the drawn sample have none. */
  mark(rows) {
    this.marked = rows;
    this.draw();
  }

  whole() {
    this.zoom = 1;
    this.middle = [0.5, 0.5]; // of the map, in units of the map
    this._measure();
    this.draw();
  }

  /** Zoom by a factor around a place of the canvas (pixels), by default its middle. */
  scale(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const zoom = Math.max(0.8, Math.min(400, this.zoom * factor));
    const [u, v] = this._mapPlace(x, y);
    const ratio = this.zoom / zoom;
    this.middle = [u + (this.middle[0] - u) * ratio, v + (this.middle[1] - v) * ratio];
    this.zoom = zoom;
    this._measure();
    this.draw();
  }

  draw() {
    if (!this.waiting) {
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this._paint();
      });
    }
  }

  // -- places: the map is the unit square ------------------------------------------------------

  /** Remember the size of the drawn map in pixels; the loops over points read these numbers. */
  _measure() {
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    const side = Math.min(this.width, this.height) - 2 * MARGIN;
    this.across = Math.min(this.width - 2 * MARGIN, side * STRETCH) * this.zoom;
    this.up = side * this.zoom;
  }

  _x(i) {
    return this.width / 2 + (this.xy[2 * i] / FULL - this.middle[0]) * this.across;
  }

  _y(i) {
    return this.height / 2 - (this.xy[2 * i + 1] / FULL - this.middle[1]) * this.up;
  }

  _mapPlace(x, y) {
    return [
      this.middle[0] + (x - this.width / 2) / this.across,
      this.middle[1] - (y - this.height / 2) / this.up,
    ];
  }

  // -- painting --------------------------------------------------------------------------------

  /** Sort the points by colour, so that a colour is set once, and fill in the legend. */
  _order() {
    const names = this.colour === "cluster" ? this.data.clusters : this.data.sources;
    const group = this.groups[this.colour];
    this.byGroup = names.map(() => []);
    group.forEach((g, i) => this.byGroup[g].push(i));
    this.hidden.clear();
    this.legend.replaceChildren(
      ...names.map((name, g) => {
        const dot = make("i", { ariaHidden: "true" });
        dot.style.background = `var(--c${g % 10})`;
        const size = this.byGroup[g].length.toLocaleString("en");
        const button = make("button", { type: "button" }, dot, `${name} (${size})`);
        button.setAttribute("aria-pressed", "true");
        button.onclick = () => {
          if (!this.hidden.delete(g)) this.hidden.add(g);
          button.setAttribute("aria-pressed", String(!this.hidden.has(g)));
          this.draw();
        };
        return button;
      }),
    );
  }

  _paint() {
    const { canvas } = this;
    this._measure();
    const { width, height } = this;
    if (!this.data || !width) return;
    const dense = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
    }
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const crowd = Math.sqrt(this.rows.length / 1000);
    const size = Math.max(2, Math.min(7, (5.5 / Math.max(1, crowd ** 0.6)) * this.zoom ** 0.35));
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.fillStyle = colour("--card");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const image = pen.getImageData(0, 0, canvas.width, canvas.height);
    this.byGroup.forEach((points, g) => {
      if (!this.hidden.has(g)) this._dots(image, points, colour(`--c${g % 10}`), size, dense);
    });
    pen.putImageData(image, 0, 0);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    this._rings(pen, colour("--ink"), size);
  }

  /** Squares of one colour, mixed into the pixels themselves: 100,000 take some 10 ms. */
  _dots(image, points, colour, size, dense) {
    const { data, width, height } = image;
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const edge = Math.max(1, Math.round(size * dense));
    for (const i of points) {
      const left = Math.round(this._x(i) * dense - edge / 2);
      const top = Math.round(this._y(i) * dense - edge / 2);
      if (left < 0 || top < 0 || left + edge > width || top + edge > height) continue;
      for (let y = top; y < top + edge; y++) {
        for (let at = 4 * (y * width + left), end = at + 4 * edge; at < end; at += 4) {
          data[at] += (red - data[at]) * OPAQUE;
          data[at + 1] += (green - data[at + 1]) * OPAQUE;
          data[at + 2] += (blue - data[at + 2]) * OPAQUE;
        }
      }
    }
  }

  _rings(pen, ink, size) {
    pen.strokeStyle = ink;
    const ring = (i, radius, line) => {
      pen.lineWidth = line;
      pen.beginPath();
      pen.arc(this._x(i), this._y(i), radius, 0, 2 * Math.PI);
      pen.stroke();
    };
    for (const row of this.marked) {
      const i = this._index(row);
      if (i >= 0) ring(i, size / 2 + 4, 1.75);
    }
    if (this.chosen >= 0) ring(this.chosen, size / 2 + 6, 3);
  }

  /** Which point a row is, by bisection; -1 if it is not drawn. */
  _index(row) {
    let [low, high] = [0, this.rows.length];
    while (low < high) {
      const half = (low + high) >> 1;
      if (this.rows[half] < row) low = half + 1;
      else high = half;
    }
    return this.rows[low] === row ? low : -1;
  }

  // -- pointing --------------------------------------------------------------------------------

  /** The visible point nearest to a place for which `fits(dx, dy)`, or -1. */
  _nearest(x, y, fits) {
    let [best, least] = [-1, Infinity];
    this.byGroup.forEach((points, g) => {
      if (this.hidden.has(g)) return;
      for (const i of points) {
        const dx = this._x(i) - x;
        const dy = this._y(i) - y;
        const distance = dx * dx + dy * dy;
        if (distance < least && fits(dx, dy)) [best, least] = [i, distance];
      }
    });
    return best;
  }

  async _choose(i) {
    if (i === this.chosen) return;
    this.chosen = i;
    this.draw();
    this.tip.hidden = true;
    if (i < 0) return;
    try {
      const entry = await this._entry(i);
      if (this.chosen !== i) return;
      const children = [make("p", {}, entry.text || entry.id)];
      if (entry.picture) {
        const image = picture(entry, "small");
        image.onerror = () => image.remove();
        children.unshift(image);
      }
      this.tip.replaceChildren(...children);
      this.tip.hidden = false;
      this._placeTip(i);
    } catch (error) {
      this.failed(error);
    }
  }

  _placeTip(i) {
    const { width, height } = this;
    const [x, y] = [this._x(i), this._y(i)];
    const { offsetWidth: w, offsetHeight: h } = this.tip;
    this.tip.style.left = `${Math.max(4, Math.min(x + 14, width - w - 4))}px`;
    this.tip.style.top = `${Math.max(4, y + 14 + h > height ? y - h - 14 : y + 14)}px`;
  }

  async _entry(i) {
    const row = this.rows[i];
    if (!this.entries.has(row)) {
      await new Promise((done) => setTimeout(done, 40)); // passing over a point asks nothing
      if (this.chosen !== i) return this.entries.get(row);
      const asked = ask("api/entry", { row, generation: this.data.generation });
      asked.catch(() => this.entries.delete(row));
      this.entries.set(row, asked);
    }
    return this.entries.get(row);
  }

  async _open(i) {
    if (i < 0) return;
    try {
      this.chosen = i;
      const entry = await this._entry(i);
      if (entry) this.open(entry);
    } catch (error) {
      this.failed(error);
    }
  }

  _listen() {
    const { canvas } = this;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this._down(event));
    canvas.addEventListener("pointermove", (event) => this._move(event));
    canvas.addEventListener("pointerup", (event) => this._up(event));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this._choose(-1);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.tip.hidden = true;
      this.scale(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this._key(event));
  }

  _down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (this.pointers.size === 1) this.moved = 0;
  }

  _move(event) {
    if (!this.data) return;
    const [x, y] = [event.offsetX, event.offsetY];
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this._choose(this._near(x, y));
      return;
    }
    const [dx, dy] = [x - before[0], y - before[1]];
    this.moved += Math.abs(dx) + Math.abs(dy);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const spread = ([a, b]) => Math.hypot(a - other[0], b - other[1]) || 1;
      this.scale(spread([x, y]) / spread(before), other[0], other[1]);
    } else if (this.moved > 4) {
      this.middle = [this.middle[0] - dx / this.across, this.middle[1] + dy / this.up];
      this._choose(-1);
      this.draw();
    }
    this.pointers.set(event.pointerId, [x, y]);
  }

  _up(event) {
    this.pointers.delete(event.pointerId);
    if (!this.data || this.moved > 4 || this.pointers.size) return;
    const i = this._near(event.offsetX, event.offsetY);
    // On a touch screen the first tap shows what is there, a second one opens it.
    if (event.pointerType === "mouse" || (i >= 0 && i === this.chosen)) this._open(i);
    else this._choose(i);
  }

  _near(x, y) {
    return this._nearest(x, y, (dx, dy) => dx * dx + dy * dy <= REACH * REACH);
  }

  _key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (!this.data) return;
    if (way) {
      const from = this.chosen;
      const [x, y] = from < 0
        ? [this.width / 2, this.height / 2]
        : [this._x(from), this._y(from)];
      const next = this._nearest(x, y, (dx, dy) => {
        if (from < 0) return true;
        const ahead = dx * way[0] + dy * way[1];
        return ahead > 6 && ahead >= Math.abs(dx * way[1] + dy * way[0]);
      });
      if (next >= 0) this._choose(next);
    } else if (event.key === "Enter") this._open(this.chosen);
    else if (event.key === "+" || event.key === "=") this.scale(1.4);
    else if (event.key === "-") this.scale(1 / 1.4);
    else if (event.key === "0") this.whole();
    else return;
    event.preventDefault();
  }
}

/** What the map shows, in a sentence. */
export function mapNote(data) {
  const drawn = data.points < data.total
    ? `${count(data.points, "entry", "entries")} of ${data.total.toLocaleString("en")}, evenly sampled`
    : count(data.points, "entry", "entries");
  const how = data.explained === null
    ? "placed by UMAP: near means similar, far means little"
    : `placed on the two main axes of the keys, which hold ${(100 * data.explained).toFixed(1)} % of their variance`;
  return `${drawn}, ${how}. Clusters are k-means groups of keys, named by the words that mark them.`;
}
