// Coresets: what one contains, and how two differ.
import { type Histogram, routes, type Share, type Shift } from "./api";
import { madeFrom, useHeld } from "./holdings";
import { useAnswer } from "./hooks";
import { address, adjust, bytes, coreset, coresets, figure, name, number, percent, pool, route } from "./state";
import { Card, Thumbnail } from "./thumbnail";

const SHOWN = 24; // pictures of a strip

function Bars({ title, histogram }: { title: string; histogram: Histogram }) {
  const top = Math.max(1, ...histogram.pool);
  const width = 100 / Math.max(1, histogram.pool.length);
  const last = histogram.edges[histogram.edges.length - 1] ?? 0;
  return (
    <figure>
      <figcaption>{title}</figcaption>
      <svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img"
           aria-label={`Histogram of ${title}, from ${histogram.edges[0]?.toPrecision(3)} to ${last.toPrecision(3)}`}>
        {histogram.pool.map((count, i) => (
          <rect class="of-pool" x={i * width} y={40 - (40 * count) / top} width={width * 0.9} height={(40 * count) / top} />
        ))}
        {histogram.selected.map((count, i) => (
          <rect class="of-coreset" x={i * width} y={40 - (40 * count) / top} width={width * 0.9} height={(40 * count) / top} />
        ))}
      </svg>
      <span class="axis"><span>{histogram.edges[0]?.toPrecision(3)}</span><span>{last.toPrecision(3)}</span></span>
    </figure>
  );
}

function Shares({ title, rows }: { title: string; rows: Share[] }) {
  if (rows.length < 2) return null;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={`By ${title}`}>
      <table>
        <caption>By {title}</caption>
        <thead><tr><th>{title}</th><th>pool</th><th>selected</th><th>share</th></tr></thead>
        <tbody>{rows.slice(0, 30).map((row) => (
          <tr><td>{name(row.value)}</td><td>{number(row.images)}</td><td>{number(row.selected)}</td>
            <td><meter min={0} max={1} value={row.share} aria-label={`${name(row.value)}: share selected`} /> {percent(row.share)}</td></tr>
        ))}</tbody>
      </table>
    </div>
  );
}

/** How a coreset was made, for whoever holds it in paper. */
function Origin({ of }: { of: string }) {
  const summary = coresets.value.find((item) => item.name === of);
  const held = useHeld(of);
  if (!summary) return null;
  const facts: [string, string][] = [
    ["method", summary.method ?? "—"], ["budget", figure(summary.budget)], ["clusters", figure(summary.clusters)],
    ["seed", figure(summary.seed)], ["picked (UTC)", summary.created.slice(0, 16).replace("T", " ")],
    ["size on disk", held ? bytes(held.bytes) : "—"], ["made from", held ? madeFrom(held) : "—"],
    ["used by", held?.used_by.join(", ") || "—"], ["store", pool.value?.store ?? "—"], ["content (SHA-256)", summary.digest],
  ];
  return (
    <dl class="facts">
      {facts.map(([title, value]) => <div key={title}><dt>{title}</dt><dd>{value}</dd></div>)}
    </dl>
  );
}

/** Pictures of a coreset: few enough to be there when the page is printed. */
function Chosen({ of }: { of: string }) {
  const page = useAnswer(routes.samples({ name: of, selected: "true", sort: "dual_rank", limit: 12 }));
  if (!page?.items.length) return null;
  return (
    <section>
      <h2>Best ranked</h2>
      <div class="grid small">{page.items.map((sample) => <Card key={sample.image_id} sample={sample} />)}</div>
    </section>
  );
}

export function CoresetView() {
  const stats = useAnswer(coreset.value ? routes.stats({ name: coreset.value }) : null);
  if (!stats) return <p role="status">{coreset.value ? "Loading …" : "There is no coreset yet: pick one."}</p>;
  return (
    <section aria-labelledby="coreset-title">
      <h1 id="coreset-title">Coreset “{stats.name}”</h1>
      <p>{number(stats.selected)} of {number(stats.images)} images, {number(stats.groups.selected)} of {number(stats.groups.pool)} groups.{" "}
        <button type="button" class="screen" onClick={() => print()}>Print</button></p>
      <Origin of={stats.name} />
      <Chosen of={stats.name} />
      <div class="figures">
        {Object.entries(stats.histograms).map(([title, histogram]) =>
          <Bars title={title.replaceAll("_", " ")} histogram={histogram} />)}
      </div>
      <p class="legend-line"><span class="swatch of-pool" /> pool <span class="swatch of-coreset" /> coreset</p>
      {Object.entries(stats.by).map(([title, rows]) => <Shares title={title} rows={rows} />)}
    </section>
  );
}

function Shifts({ title, rows }: { title: string; rows: Shift[] }) {
  if (!rows.length) return null;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={`Shifts by ${title}`}>
      <table>
        <caption>Shift by {title}</caption>
        <thead><tr><th>{title}</th><th>in A</th><th>in B</th><th>shift</th></tr></thead>
        <tbody>{rows.slice(0, 20).map((row) => (
          <tr><td>{name(String(row.value))}</td><td>{number(row.a)} ({percent(row.share_a)})</td>
            <td>{number(row.b)} ({percent(row.share_b)})</td>
            <td>{row.shift > 0 ? "+" : ""}{percent(row.shift)}</td></tr>
        ))}</tbody>
      </table>
    </div>
  );
}

function Strip({ title, ids, count }: { title: string; ids: string[]; count: number }) {
  return (
    <section>
      <h2>{title}{count > SHOWN && `: ${SHOWN} of ${number(count)}`}</h2>
      {ids.length === 0 && <p>None.</p>}
      <div class="grid small">
        {ids.slice(0, SHOWN).map((id) => (
          <a class="card" href={address(`image/${id}`)} key={id}>
            <Thumbnail id={id} size={160} alt={`image ${id.slice(0, 8)}`} />
            <span class="caption">{id.slice(0, 8)}</span>
          </a>
        ))}
      </div>
    </section>
  );
}

export function Compare() {
  const names = coresets.value.map((item) => item.name);
  const a = route.value.values.get("a") ?? coreset.value;
  const b = route.value.values.get("b") ?? names.find((other) => other !== a) ?? "";
  const answer = useAnswer(a && b ? routes.compare({ a, b }) : null);
  const pick = (field: "a" | "b", value: string) => (
    <label>
      {field === "a" ? "From A:" : "to B:"}{" "}
      <select value={value} onChange={(event) => adjust({ [field]: event.currentTarget.value })}>
        {names.map((option) => <option value={option}>{option}</option>)}
      </select>
    </label>
  );
  return (
    <section aria-labelledby="compare-title">
      <h1 id="compare-title">Compare coresets</h1>
      {names.length < 2 && <p>There is only one coreset. <a href={address("pick")}>Pick another</a> to compare.</p>}
      {names.length > 1 && <div class="bar">{pick("a", a)}{pick("b", b)}</div>}
      {answer && (
        <>
          <p class="verdict" role="status">{answer.text}</p>
          <dl class="facts">
            <div><dt>in both</dt><dd>{number(answer.both)}</dd></div>
            <div><dt>left</dt><dd>{number(answer.only_a)}</dd></div>
            <div><dt>entered</dt><dd>{number(answer.only_b)}</dd></div>
            <div><dt>overlap (Jaccard)</dt><dd>{percent(answer.jaccard)}</dd></div>
          </dl>
          <Strip title="Entered" ids={answer.entered} count={answer.only_b} />
          <Strip title="Left" ids={answer.left} count={answer.only_a} />
          {Object.entries(answer.by).map(([title, rows]) => <Shifts title={title} rows={rows} />)}
        </>
      )}
    </section>
  );
}
