// The map's data: one Arrow table as typed arrays, its colours, and the points inside a lasso.
import { tableFromIPC } from "@uwdata/flechette";
import { askPatiently, routes } from "./api";

export interface Points {
  count: number;
  row: Uint32Array; x: Float32Array; y: Float32Array;
  organ: Uint16Array; device: Uint16Array; cluster: Int32Array; rank: Float32Array;
  selected: Uint8Array; pin: Int8Array;
  organs: string[]; devices: string[];
}

export type Colouring = "organ" | "device" | "cluster" | "rank" | "selected";
export interface Legend { label: string; colour: [number, number, number] }

/** Read the points of a coreset, shuffled, so that the first ones are a fair sample. */
export async function readPoints(
  coreset: string, signal: AbortSignal, waiting: (message: string) => void,
): Promise<Points> {
  const answer = await askPatiently(routes.map({ coreset }), signal, waiting);
  const table = tableFromIPC(new Uint8Array(await answer.arrayBuffer()));
  const metadata = table.schema.metadata ?? new Map<string, string>();
  const list = (key: string): string[] => JSON.parse(metadata.get(key) ?? "[]") as string[];
  const count = table.numRows;
  const order = shuffled(count);
  const take = <T extends Float32Array | Uint32Array | Uint16Array | Int32Array | Uint8Array | Int8Array>(
    name: string, make: new (length: number) => T): T => {
    const from = table.getChild(name)!.toArray() as ArrayLike<number>;
    const to = new make(count);
    for (let i = 0; i < count; i++) to[i] = from[order[i]!]!;
    return to;
  };
  return {
    count,
    row: take("row", Uint32Array), x: take("x", Float32Array), y: take("y", Float32Array),
    organ: take("organ", Uint16Array), device: take("device", Uint16Array),
    cluster: take("cluster", Int32Array), rank: take("rank", Float32Array),
    selected: take("selected", Uint8Array), pin: take("pin", Int8Array),
    organs: list("organs"), devices: list("devices"),
  };
}

/** A fixed shuffle of 0..count-1 (Fisher and Yates, xorshift): the same picture every time. */
function shuffled(count: number): Uint32Array {
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = i;
  let state = 0x9e3779b9;
  for (let i = count - 1; i > 0; i--) {
    state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
    const j = (state >>> 0) % (i + 1);
    const kept = order[i]!;
    order[i] = order[j]!;
    order[j] = kept;
  }
  return order;
}

// Okabe and Ito's colours, which colour-blind people can distinguish; then further ones by hue.
const PALETTE: [number, number, number][] = [
  [0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0],
  [170, 160, 40], [120, 94, 160], [140, 86, 75], [23, 150, 160],
];
const GREY: [number, number, number] = [140, 140, 145];

function hue(index: number): [number, number, number] {
  if (index < PALETTE.length) return PALETTE[index]!;
  const angle = (index * 137.508) % 360;
  const part = (shift: number): number => {
    const k = (shift + angle / 30) % 12;
    return Math.round(255 * (0.55 - 0.3 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

/** Colours of all points (RGBA, 4 x count) and the legend that explains them. */
export function colours(points: Points, by: Colouring): { values: Uint8ClampedArray; legend: Legend[] } {
  const values = new Uint8ClampedArray(4 * points.count);
  const set = (i: number, [r, g, b]: [number, number, number], alpha: number): void => {
    values[4 * i] = r; values[4 * i + 1] = g; values[4 * i + 2] = b; values[4 * i + 3] = alpha;
  };
  let legend: Legend[] = [];
  if (by === "organ" || by === "device") {
    const codes = points[by];
    const names = by === "organ" ? points.organs : points.devices;
    for (let i = 0; i < points.count; i++) set(i, hue(codes[i]!), 190);
    legend = names.slice(0, 12).map((label, i) => ({ label: label || "unknown", colour: hue(i) }));
  } else if (by === "cluster") {
    for (let i = 0; i < points.count; i++) set(i, points.cluster[i]! < 0 ? GREY : hue(points.cluster[i]!), 190);
    legend = [{ label: "one colour per cluster", colour: hue(0) }];
  } else if (by === "rank") {
    for (let i = 0; i < points.count; i++) {
      const rank = points.rank[i]!;
      set(i, Number.isNaN(rank) ? GREY : ramp(rank), 200);
    }
    legend = [0.05, 0.5, 1].map((r) => ({ label: r < 0.1 ? "best dual rank" : r > 0.9 ? "worst" : "middle", colour: ramp(r) }));
  } else {
    for (let i = 0; i < points.count; i++) {
      if (points.pin[i]! < 0) set(i, [213, 94, 0], 230);
      else if (points.selected[i]) set(i, [0, 114, 178], 230);
      else set(i, GREY, 90);
    }
    legend = [
      { label: "selected", colour: [0, 114, 178] }, { label: "not selected", colour: GREY },
      { label: "banned", colour: [213, 94, 0] },
    ];
  }
  return { values, legend };
}

/** Dark blue for the best, yellow for the worst: the brightness differs too. */
function ramp(rank: number): [number, number, number] {
  const t = Math.min(1, Math.max(0, rank));
  return [Math.round(30 + 210 * t), Math.round(60 + 150 * t), Math.round(150 - 90 * t)];
}

/** Indices of the points inside a closed polygon [x0, y0, x1, y1, ...] (even-odd rule). */
export function inside(points: Points, polygon: number[]): Uint32Array {
  const found: number[] = [];
  let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let k = 0; k < polygon.length; k += 2) {
    left = Math.min(left, polygon[k]!); right = Math.max(right, polygon[k]!);
    bottom = Math.min(bottom, polygon[k + 1]!); top = Math.max(top, polygon[k + 1]!);
  }
  const corners = polygon.length / 2;
  for (let i = 0; i < points.count; i++) {
    const x = points.x[i]!, y = points.y[i]!;
    if (x < left || x > right || y < bottom || y > top) continue;
    let odd = false;
    for (let a = 0, b = corners - 1; a < corners; b = a++) {
      const ax = polygon[2 * a]!, ay = polygon[2 * a + 1]!, bx = polygon[2 * b]!, by = polygon[2 * b + 1]!;
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
    }
    if (odd) found.push(i);
  }
  return Uint32Array.from(found);
}

/** Finds the point nearest to a position: points sorted into the cells of a grid, about four to a cell. */
export class Nearness {
  private side: number;
  private left = Infinity;
  private bottom = Infinity;
  private cell: number; // edge of a cell, in the map's units
  private starts: Uint32Array; // where each cell begins in `order`
  private order: Uint32Array; // points by cell, within a cell in the order they are drawn

  constructor(private points: Points) {
    const { count, x, y } = points;
    let [right, top] = [-Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      this.left = Math.min(this.left, x[i]!); right = Math.max(right, x[i]!);
      this.bottom = Math.min(this.bottom, y[i]!); top = Math.max(top, y[i]!);
    }
    this.side = Math.max(1, Math.min(1024, Math.ceil(Math.sqrt(count / 4))));
    this.cell = Math.max(right - this.left, top - this.bottom, 1e-6) / this.side;
    this.starts = new Uint32Array(this.side * this.side + 1);
    for (let i = 0; i < count; i++) this.starts[this.cellOf(x[i]!, y[i]!) + 1]!++;
    for (let c = 0; c < this.side * this.side; c++) this.starts[c + 1]! += this.starts[c]!;
    const next = this.starts.slice();
    this.order = new Uint32Array(count);
    for (let i = 0; i < count; i++) this.order[next[this.cellOf(x[i]!, y[i]!)]!++] = i;
  }

  /** The nearest of the first `drawn` points within a distance; -1 if there is none. */
  find(x: number, y: number, distance: number, drawn: number): number {
    let best = distance * distance, index = -1;
    const [west, east] = [this.along(x - distance - this.left), this.along(x + distance - this.left)];
    const [south, north] = [this.along(y - distance - this.bottom), this.along(y + distance - this.bottom)];
    for (let row = south; row <= north; row++) {
      for (let column = west; column <= east; column++) {
        const cell = row * this.side + column;
        for (let k = this.starts[cell]!; k < this.starts[cell + 1]!; k++) {
          const i = this.order[k]!;
          if (i >= drawn) break;
          const dx = this.points.x[i]! - x, dy = this.points.y[i]! - y;
          const squared = dx * dx + dy * dy;
          if (squared < best) { best = squared; index = i; }
        }
      }
    }
    return index;
  }

  private cellOf(x: number, y: number): number {
    return this.along(y - this.bottom) * this.side + this.along(x - this.left);
  }

  private along(offset: number): number {
    return Math.max(0, Math.min(this.side - 1, Math.floor(offset / this.cell)));
  }
}
