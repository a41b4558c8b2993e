// The map's canvas: deck.gl draws the points; how many follows from how long a frame takes.
import { Deck, OrthographicView } from "@deck.gl/core";
import { PolygonLayer } from "@deck.gl/layers";
import type { Device } from "@luma.gl/core";
import { DotsLayer } from "./dots";
import { Nearness, type Points } from "./points";

const STEADY = 50; // a frame while moving may take this long, in milliseconds
const STILL = 400; // and the last one, when nothing moves
const SMALLEST = 20_000; // points

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
  private nearness: Nearness | null = null;
  // The same object as long as the values are the same: deck.gl uploads them again otherwise.
  private positions = { value: new Float32Array(0), size: 2 };
  private colours = { value: new Uint8ClampedArray(0) as Uint8ClampedArray, size: 4 };
  private marked = { value: new Float32Array(0), size: 2 };
  private polygon: number[] = [];
  private drawing = false;
  private pace = 300; // points drawn in a millisecond, learnt from frame to frame
  private drawn = 0;
  private uploading = false; // whether the next frame also sends the points to the graphics card
  private busy = false; // whether a frame is being drawn
  private waiting = false; // and another is wanted after it
  private frameStart = 0;
  private destroyed = false; // whether the map's page was left
  private rest: ReturnType<typeof setTimeout> | undefined;
  private resized: ResizeObserver;
  private moved = false; // whether the view was moved away from the whole map
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
      onBeforeRender: () => { this.frameStart = performance.now(); },
      onAfterRender: ({ device }) => this.time(device),
      layers: [],
    });
    // Captured, so that a lasso is seen before deck.gl would move the map.
    parent.addEventListener("pointerdown", this.down, true);
    parent.addEventListener("pointermove", this.move, true);
    parent.addEventListener("pointerup", this.up, true);
    parent.addEventListener("pointercancel", this.cancel, true);
    parent.addEventListener("pointerleave", () => handlers.hover(-1, 0, 0));
    this.resized = new ResizeObserver(() => this.moved || this.reset());
    this.resized.observe(parent);
  }

  show(points: Points): void {
    this.points = points;
    this.nearness = null;
    this.positions = { value: this.coordinates(), size: 2 };
    this.uploading = true;
    this.settle();
  }

  colour(values: Uint8ClampedArray): void {
    this.colours = { value: values, size: 4 };
    this.uploading = true;
    this.settle();
  }

  /** x and y of all points or of some, one after another. */
  private coordinates(indices?: Uint32Array): Float32Array<ArrayBuffer> {
    const { x, y, count } = this.points!;
    const found = new Float32Array(2 * (indices?.length ?? count));
    for (let k = 0; 2 * k < found.length; k++) {
      const index = indices ? indices[k]! : k;
      found[2 * k] = x[index]!;
      found[2 * k + 1] = y[index]!;
    }
    return found;
  }

  mark(indices: Uint32Array): void {
    const shown = indices.slice(0, 20_000);
    this.marked = { value: this.coordinates(shown), size: 2 };
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
    this.destroyed = true;
    clearTimeout(this.rest);
    this.resized.disconnect();
    this.deck.finalize();
  }

  private moveTo(view: ViewState): void {
    this.view = { target: [view.target[0], view.target[1]], zoom: view.zoom };
    this.draw(Math.min(this.drawn, this.affordable(STEADY)));
    this.restSoon();
  }

  private restSoon(): void {
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.settle(), 220);
  }

  /** Nothing moves: draw as many points as a longer frame allows. */
  private settle(): void {
    clearTimeout(this.rest);
    this.rest = undefined;
    if (this.pressed) return; // a slow hand is not at rest
    this.draw(this.affordable(STILL));
  }

  private affordable(milliseconds: number): number {
    return Math.max(SMALLEST, Math.round(this.pace * milliseconds));
  }

  /** Wait for the frame to be drawn, learn from it how many points a millisecond draws. */
  private time(device: Device): void {
    const { drawn, frameStart, uploading } = this;
    this.busy = true;
    this.uploading = false;
    const fence = device.createFence();
    void fence.signaled.then(() => {
      if (this.destroyed) return;
      fence.destroy();
      this.busy = false;
      this.lastFrame = performance.now() - frameStart;
      if (!uploading && drawn >= SMALLEST) this.pace += 0.5 * (drawn / this.lastFrame - this.pace);
      if (this.waiting) this.render();
      else if (!this.rest && drawn < (this.points?.count ?? 0) && (uploading || this.lastFrame < 0.6 * STILL)) this.settle();
    });
  }

  private draw(count: number): void {
    const points = this.points;
    if (points && this.colours.value.length === 4 * points.count) this.drawn = Math.min(count, points.count);
    if (this.busy) this.waiting = true; // frames do not queue: the hand would run ahead of the map
    else this.render();
  }

  private render(): void {
    this.waiting = false;
    const size = Math.max(2.2, Math.min(8, 1800 / Math.sqrt(this.points?.count ?? 1)));
    this.deck.setProps({
      viewState: this.view as never,
      layers: [
        new DotsLayer({
          id: "points",
          data: { length: this.drawn, attributes: { getPosition: this.positions, getColor: this.colours } },
          diameter: size,
        }),
        new DotsLayer({
          id: "marked",
          data: { length: this.marked.value.length / 2, attributes: { getPosition: this.marked } },
          getColor: [220, 30, 60, 220],
          diameter: size + 6,
          line: 1.4,
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

  private position(event: PointerEvent): [number, number] {
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
    this.polygon = this.position(event);
    event.stopPropagation();
    event.preventDefault();
  };

  private move = (event: PointerEvent): void => {
    if (event.buttons === 0 && this.pressed) this.cancel(); // let go outside
    if (this.drawing) {
      event.stopPropagation();
      const [x, y] = this.position(event);
      const last = this.polygon.slice(-2);
      if (Math.hypot(x - last[0]!, y - last[1]!) * 2 ** this.view.zoom < 3) return;
      this.polygon = [...this.polygon, x, y];
      this.draw(Math.min(this.drawn, this.affordable(STEADY)));
      return;
    }
    if (event.buttons) return;
    const box = this.parent.getBoundingClientRect();
    this.handlers.hover(this.at(event, 7), event.clientX - box.left, event.clientY - box.top);
  };

  private up = (event: PointerEvent): void => {
    const pressed = this.pressed;
    this.pressed = null;
    if (this.drawing) {
      event.stopPropagation();
      this.drawing = false;
      const polygon = this.polygon;
      if (this.points && polygon.length >= 6) this.handlers.lasso(polygon);
      this.restSoon();
      return;
    }
    this.restSoon();
    const still = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 4;
    const index = still ? this.at(event, 9) : -1;
    if (index >= 0) this.handlers.click(index);
  };

  private cancel = (): void => {
    this.pressed = null;
    this.restSoon();
    if (!this.drawing) return;
    this.drawing = false;
    this.clearLasso();
  };

  /** The drawn point nearest to a pointer, within so many pixels; -1 where there is none. */
  private at(event: PointerEvent, pixels: number): number {
    if (!this.points) return -1;
    this.nearness ??= new Nearness(this.points);
    const [x, y] = this.position(event);
    return this.nearness.find(x, y, pixels / 2 ** this.view.zoom, this.drawn);
  }

  clearLasso(): void {
    this.polygon = [];
    this.marked = { value: new Float32Array(0), size: 2 };
    this.draw(this.drawn);
  }
}

function pairs(flat: number[]): [number, number][] {
  const found: [number, number][] = [];
  for (let k = 0; k < flat.length; k += 2) found.push([flat[k]!, flat[k + 1]!]);
  return found;
}
