// The map's canvas: deck.gl draws the points; how many follows from how long a frame takes.
import { Deck, OrthographicView } from "@deck.gl/core";
import { PolygonLayer, ScatterplotLayer } from "@deck.gl/layers";
import { nearest, type Points } from "./points";

const STEADY = 60; // a frame while moving may take this long, in milliseconds
const STILL = 250; // and the last one, when nothing moves
const SMALLEST = 20_000;

interface ViewState { target: [number, number]; zoom: number }

export interface Handlers {
  hover: (index: number, left: number, top: number) => void;
  click: (index: number) => void;
  lasso: (polygon: number[]) => void;
}

/** A map of points that stays responsive at millions, also without a graphics card. */
export class Canvas {
  private deck: Deck<OrthographicView>;
  private view: ViewState;
  private points: Points | null = null;
  private positions = new Float32Array(0);
  private values: Uint8ClampedArray = new Uint8ClampedArray(0);
  private marked = new Float32Array(0);
  private polygon: number[] = [];
  private drawing = false;
  private limit = 150_000; // points while moving
  private drawn = 0;
  private rest: ReturnType<typeof setTimeout> | undefined;
  private resized: ResizeObserver;
  private moved = false; // whether the reader has left the whole map
  lassoing = false;
  lastFrame = 0;

  constructor(private parent: HTMLElement, private handlers: Handlers) {
    const side = Math.max(50, Math.min(parent.clientWidth, parent.clientHeight));
    this.view = { target: [0, 0], zoom: Math.log2(side / 2.2) };
    this.deck = new Deck({
      parent: parent as HTMLDivElement,
      views: new OrthographicView({ flipY: false }),
      viewState: this.view as never,
      controller: { keyboard: false, doubleClickZoom: true, inertia: false } as never,
      useDevicePixels: 1,
      getCursor: () => (this.lassoing ? "crosshair" : "grab"),
      onViewStateChange: ({ viewState }) => {
        if (this.lassoing) return;
        this.moved = true;
        this.moveTo(viewState as unknown as ViewState);
      },
      layers: [],
    });
    // Captured, so that a lasso is seen before deck.gl would move the map.
    parent.addEventListener("pointerdown", this.down, true);
    parent.addEventListener("pointermove", this.move, true);
    parent.addEventListener("pointerup", this.up, true);
    parent.addEventListener("pointerleave", () => handlers.hover(-1, 0, 0));
    this.resized = new ResizeObserver(() => this.moved || this.reset());
    this.resized.observe(parent);
  }

  show(points: Points): void {
    this.points = points;
    this.positions = new Float32Array(2 * points.count);
    for (let i = 0; i < points.count; i++) {
      this.positions[2 * i] = points.x[i]!;
      this.positions[2 * i + 1] = points.y[i]!;
    }
    this.settle();
  }

  colour(values: Uint8ClampedArray): void {
    this.values = values;
    this.settle();
  }

  mark(indices: Uint32Array): void {
    const shown = indices.slice(0, 20_000);
    this.marked = new Float32Array(2 * shown.length);
    shown.forEach((index, k) => {
      this.marked[2 * k] = this.points!.x[index]!;
      this.marked[2 * k + 1] = this.points!.y[index]!;
    });
    this.draw(this.drawn);
  }

  pan(right: number, up: number): void {
    this.moved = true;
    const step = 80 / 2 ** this.view.zoom;
    this.moveTo({ ...this.view, target: [this.view.target[0] + right * step, this.view.target[1] + up * step] });
  }

  zoom(by: number): void {
    this.moved = true;
    this.moveTo({ ...this.view, zoom: Math.max(4, Math.min(22, this.view.zoom + by)) });
  }

  reset(): void {
    this.moved = false;
    const side = Math.max(50, Math.min(this.parent.clientWidth, this.parent.clientHeight));
    this.moveTo({ target: [0, 0], zoom: Math.log2(side / 2.2) });
  }

  destroy(): void {
    clearTimeout(this.rest);
    this.resized.disconnect();
    this.deck.finalize();
  }

  private moveTo(view: ViewState): void {
    this.view = { target: [view.target[0], view.target[1]], zoom: view.zoom };
    this.deck.setProps({ viewState: this.view as never });
    if (this.drawn > this.limit) this.draw(this.limit);
    this.time(false);
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.settle(), 220);
  }

  /** Nothing moves: draw as many points as a longer frame allows. */
  private settle(): void {
    const count = this.points?.count ?? 0;
    this.draw(Math.min(count, Math.max(SMALLEST, Math.round(this.limit * (STILL / STEADY)))));
    this.time(true);
  }

  /** Learn from the last frame how many points the next may have. */
  private time(still: boolean): void {
    const start = performance.now();
    const drawn = this.drawn;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      this.lastFrame = performance.now() - start;
      const target = still ? STILL : STEADY;
      const ratio = target / Math.max(this.lastFrame, 1);
      if (ratio < 0.8) this.limit = Math.max(SMALLEST, Math.round(this.limit * Math.max(0.4, ratio)));
      else if (ratio > 1.6) {
        this.limit = Math.min(50_000_000, Math.round(this.limit * 1.5));
        if (still && this.points && drawn < this.points.count && drawn === this.drawn) this.settle();
      }
    }));
  }

  private draw(count: number): void {
    const points = this.points;
    if (!points || this.values.length !== 4 * points.count) return;
    this.drawn = Math.min(count, points.count);
    const radius = Math.max(1.1, Math.min(4, 900 / Math.sqrt(points.count)));
    this.deck.setProps({
      layers: [
        new ScatterplotLayer({
          id: "points",
          data: {
            length: this.drawn,
            attributes: {
              getPosition: { value: this.positions, size: 2 },
              getFillColor: { value: this.values, size: 4 },
            },
          },
          radiusUnits: "pixels",
          getRadius: radius,
          stroked: false,
          antialiasing: points.count < 200_000,
          pickable: false,
          updateTriggers: { getFillColor: this.values },
        }),
        new ScatterplotLayer({
          id: "marked",
          data: {
            length: this.marked.length / 2,
            attributes: { getPosition: { value: this.marked, size: 2 } },
          },
          radiusUnits: "pixels",
          getRadius: radius + 2.5,
          filled: false,
          stroked: true,
          lineWidthUnits: "pixels",
          getLineWidth: 1.2,
          getLineColor: [220, 30, 60, 220],
        }),
        new PolygonLayer({
          id: "lasso",
          data: this.polygon.length >= 6 ? [pairs(this.polygon)] : [],
          getPolygon: (corners: [number, number][]) => corners,
          getFillColor: [220, 30, 60, 30],
          getLineColor: [220, 30, 60, 220],
          lineWidthUnits: "pixels",
          getLineWidth: 1.5,
        }),
      ],
    });
  }

  private place(event: PointerEvent): [number, number] {
    const box = this.parent.getBoundingClientRect();
    const scale = 2 ** this.view.zoom;
    return [
      this.view.target[0] + (event.clientX - box.left - box.width / 2) / scale,
      this.view.target[1] - (event.clientY - box.top - box.height / 2) / scale,
    ];
  }

  private pressed: [number, number] | null = null;

  private down = (event: PointerEvent): void => {
    this.pressed = [event.clientX, event.clientY];
    if (!this.lassoing) return;
    this.drawing = true;
    this.polygon = this.place(event);
    event.stopPropagation();
    event.preventDefault();
  };

  private hovering = 0;

  private move = (event: PointerEvent): void => {
    if (this.drawing) {
      event.stopPropagation();
      const [x, y] = this.place(event);
      const last = this.polygon.slice(-2);
      if (Math.hypot(x - last[0]!, y - last[1]!) * 2 ** this.view.zoom < 3) return;
      this.polygon = [...this.polygon, x, y];
      this.draw(Math.min(this.drawn, this.limit));
      return;
    }
    const now = performance.now();
    if (!this.points || event.buttons || now - this.hovering < 60) return;
    this.hovering = now;
    const [x, y] = this.place(event);
    const index = nearest(this.points, x, y, 7 / 2 ** this.view.zoom, this.drawn);
    const box = this.parent.getBoundingClientRect();
    this.handlers.hover(index, event.clientX - box.left, event.clientY - box.top);
  };

  private up = (event: PointerEvent): void => {
    if (this.drawing) {
      event.stopPropagation();
      this.drawing = false;
      const polygon = this.polygon;
      if (polygon.length >= 6) this.handlers.lasso(polygon);
      this.settle();
      return;
    }
    const still = this.pressed && Math.hypot(event.clientX - this.pressed[0], event.clientY - this.pressed[1]) < 4;
    if (!still || !this.points) return;
    const [x, y] = this.place(event);
    const index = nearest(this.points, x, y, 9 / 2 ** this.view.zoom, this.drawn);
    if (index >= 0) this.handlers.click(index);
  };

  clearLasso(): void {
    this.polygon = [];
    this.marked = new Float32Array(0);
    this.draw(this.drawn);
  }
}

function pairs(flat: number[]): [number, number][] {
  const found: [number, number][] = [];
  for (let k = 0; k < flat.length; k += 2) found.push([flat[k]!, flat[k + 1]!]);
  return found;
}
