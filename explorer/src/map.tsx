// The map of the pool: every scored image is a point; colours, previews, lasso.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { routes, type Sample } from "./api";
import { Canvas } from "./canvas";
import { useKeys } from "./hooks";
import { openPin } from "./pins";
import { colours, type Colouring, inside, type Legend, type Points, readPoints } from "./points";
import { address, adjust, coreset, go, number, pool, route, say } from "./state";
import { Card, Thumbnail } from "./thumbnail";

const COLOURINGS: [Colouring, string][] = [
  ["organ", "organ"], ["device", "device"], ["cluster", "cluster"], ["rank", "dual rank"],
  ["selected", "selected"],
];
const SHOWN = 48; // pictures for a lasso

async function lookup(rows: number[]): Promise<Sample[]> {
  const answer = await routes.lookUp({ rows, ids: [], coreset: coreset.value || null });
  return answer.items;
}

export function MapView() {
  const box = useRef<HTMLDivElement>(null);
  const canvas = useRef<Canvas | null>(null);
  const [points, setPoints] = useState<Points | null>(null);
  const [legend, setLegend] = useState<Legend[]>([]);
  const [lassoing, setLassoing] = useState(false);
  const [inLasso, setInLasso] = useState<Uint32Array | null>(null);
  const [samples, setSamples] = useState<Sample[]>([]);
  const [hovered, setHovered] = useState<{ sample: Sample; left: number; top: number } | null>(null);
  const named = route.value.values.get("colour") as Colouring | null;
  const by: Colouring = COLOURINGS.some(([key]) => key === named) ? named! : "organ";
  const name = coreset.value;
  const known = pool.value !== null;
  const [state, setState] = useState("Loading the map …");
  const current = useRef<Points | null>(null);
  current.current = points;

  useEffect(() => {
    let last = -1;
    let wait: ReturnType<typeof setTimeout> | undefined;
    const made = new Canvas(box.current!, {
      hover: (index, left, top) => {
        if (index === last) return;
        last = index;
        clearTimeout(wait);
        if (index < 0) return setHovered(null);
        wait = setTimeout(() => {
          lookup([current.current!.row[index]!])
            .then(([sample]) => last === index && sample && setHovered({ sample, left, top }))
            .catch(say);
        }, 80);
      },
      click: (index) => {
        lookup([current.current!.row[index]!])
          .then(([sample]) => sample && go(address(`image/${sample.image_id}`)))
          .catch(say);
      },
      lasso: (polygon) => setInLasso(inside(current.current!, polygon)),
    });
    canvas.current = made;
    (box.current as HTMLElement & { canvasOfMap?: Canvas }).canvasOfMap = made;
    return () => {
      clearTimeout(wait);
      made.destroy();
      canvas.current = null;
    };
  }, []);

  useEffect(() => {
    const stop = new AbortController();
    if (!known) return undefined; // the names of the coresets are not loaded yet
    readPoints(name, stop.signal, setState).then(setPoints).catch(say);
    return () => stop.abort();
  }, [name, known]);

  // Before the page is painted: whoever sees it ready may already use the map and the lasso.
  useLayoutEffect(() => {
    if (points) canvas.current?.show(points);
  }, [points]);

  useLayoutEffect(() => {
    if (!points) return;
    const made = colours(points, by);
    canvas.current?.colour(made.values);
    setLegend(made.legend);
  }, [points, by]);

  useLayoutEffect(() => {
    if (canvas.current) canvas.current.lassoing = lassoing;
  }, [lassoing]);

  useEffect(() => {
    if (!inLasso || !points) return setSamples([]);
    canvas.current?.mark(inLasso);
    const rows = Array.from(inLasso.slice(0, SHOWN), (index) => points.row[index]!);
    if (rows.length) lookup(rows).then(setSamples).catch(say);
    else setSamples([]);
  }, [inLasso, points]);

  const clear = () => {
    setInLasso(null);
    canvas.current?.clearLasso();
  };

  useKeys((event) => {
    const moves: Record<string, () => void> = {
      ArrowLeft: () => canvas.current?.pan(-1, 0), ArrowRight: () => canvas.current?.pan(1, 0),
      ArrowUp: () => canvas.current?.pan(0, 1), ArrowDown: () => canvas.current?.pan(0, -1),
      "+": () => canvas.current?.zoom(0.5), "-": () => canvas.current?.zoom(-0.5),
      "0": () => canvas.current?.reset(), l: () => setLassoing((on) => !on), Escape: clear,
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  });

  const selected = inLasso && points ? inLasso.reduce((sum, index) => sum + points.selected[index]!, 0) : 0;
  return (
    <section class="map" aria-labelledby="map-title">
      <h1 id="map-title" class="quiet">Map of the pool</h1>
      <div class="bar">
        <label>
          Colour by{" "}
          <select value={by} onChange={(event) => adjust({ colour: event.currentTarget.value })}>
            {COLOURINGS.map(([key, text]) => <option value={key}>{text}</option>)}
          </select>
        </label>
        <button type="button" aria-pressed={lassoing} onClick={() => setLassoing(!lassoing)}>Lasso</button>
        <button type="button" onClick={() => canvas.current?.zoom(0.5)} aria-label="Zoom in">+</button>
        <button type="button" onClick={() => canvas.current?.zoom(-0.5)} aria-label="Zoom out">−</button>
        <button type="button" onClick={() => canvas.current?.reset()}>Reset view</button>
        <span class="quiet-text">{points ? `${number(points.count)} images` : state}</span>
      </div>
      <div class="map-body">
        <div class="plot" ref={box} role="img" data-ready={points ? "true" : "false"}
             aria-label={`Map of ${points ? number(points.count) : "the"} images coloured by ${by}. The gallery shows the same images as a list.`} />
        <ul class="legend" aria-label="Legend">
          {legend.map(({ label, colour }) => (
            <li><span class="swatch" style={{ background: `rgb(${colour.join(",")})` }} />{label}</li>
          ))}
        </ul>
        {hovered && (
          <div class="tip" style={{ left: `${hovered.left + 14}px`, top: `${hovered.top + 14}px` }}>
            <Thumbnail id={hovered.sample.image_id} size={160} alt="" />
            <strong>{hovered.sample.organ || "unknown organ"}</strong>
            <span>{hovered.sample.source}</span>
            <span>cluster {hovered.sample.cluster}, {hovered.sample.selected ? "selected" : "not selected"}</span>
          </div>
        )}
      </div>
      {inLasso && (
        <aside class="caught" aria-live="polite">
          <div class="bar">
            <strong>{number(inLasso.length)} images in the lasso, {number(selected)} selected</strong>
            <button type="button" disabled={!samples.length}
                    onClick={() => openPin({ action: "pin", images: samples.map((s) => s.image_id) })}>
              Pin the {samples.length} shown
            </button>
            <button type="button" disabled={!samples.length}
                    onClick={() => openPin({ action: "ban", images: samples.map((s) => s.image_id) })}>
              Ban the {samples.length} shown
            </button>
            <button type="button" onClick={clear}>Clear</button>
          </div>
          <div class="grid">{samples.map((sample) => <Card key={sample.image_id} sample={sample} />)}</div>
        </aside>
      )}
    </section>
  );
}
