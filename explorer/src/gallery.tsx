// The gallery: pictures of a coreset's rows, filtered and sorted; more are loaded on scrolling.
import { useEffect, useRef, useState } from "preact/hooks";
import { type Count, read, routes, type Sample } from "./api";
import { adjust, coreset, name, number, pool, route, say } from "./state";
import { Card } from "./thumbnail";

const SORTS: [string, string][] = [
  ["dual_rank", "best dual rank"], ["-dual_rank", "worst dual rank"], ["distance", "most typical"],
  ["-distance", "least typical"], ["-gradient", "largest gradient"], ["gradient", "smallest gradient"],
  ["-reconstruction_error", "worst reconstructed"], ["cluster", "cluster"], ["image_id", "id"],
];
const FILTERS = ["selected", "organ", "device", "label", "cluster", "source", "sort"] as const;

const one = (value: string): string[] => (value ? [value] : []);

function Choice({ label, field, options }: { label: string; field: string; options: Count[] }) {
  const value = route.value.values.get(field) ?? "";
  const known = options.filter((option) => option.value !== "");
  if (!known.length) return null;
  return (
    <label>
      {label}{" "}
      <select value={value} onChange={(event) => adjust({ [field]: event.currentTarget.value })}>
        <option value="">any</option>
        {known.map((option) => (
          <option value={option.value}>{name(option.value)} ({number(option.images)})</option>
        ))}
      </select>
    </label>
  );
}

export function Gallery() {
  const values = route.value.values;
  const about = pool.value;
  const filters = Object.fromEntries(
    FILTERS.map((key) => [key, values.get(key) ?? ""])) as Record<(typeof FILTERS)[number], string>;
  const page = (cursor: string | null) => routes.samples({
    name: coreset.value, cursor, limit: 60, sort: filters.sort || "dual_rank",
    selected: (filters.selected || "any") as "true" | "false" | "any",
    organ: one(filters.organ), device: one(filters.device), label: one(filters.label),
    cluster: one(filters.cluster).map(Number), source: filters.source,
  });
  const first = coreset.value ? page(null) : null;
  const [pages, setPages] = useState<{ first: string; items: Sample[]; total: number; next: string | null }>();
  const [busy, setBusy] = useState(false);
  const end = useRef<HTMLDivElement>(null);

  useEffect(() => {
    if (!first) return undefined;
    const stop = new AbortController();
    setBusy(true);
    read(first, stop.signal)
      .then((found) => setPages({ first, ...found }))
      .catch(say)
      .finally(() => setBusy(false));
    return () => stop.abort();
  }, [first]);

  const more = () => {
    if (!pages?.next || pages.first !== first || busy) return;
    setBusy(true);
    read(page(pages.next))
      .then((found) => setPages((old) => old && old.first === pages.first
        ? { ...old, items: [...old.items, ...found.items], next: found.next } : old))
      .catch(say)
      .finally(() => setBusy(false));
  };

  useEffect(() => {
    const watch = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "600px" });
    watch.observe(end.current!);
    return () => watch.disconnect();
  });

  const walk = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const cards = [...document.querySelectorAll<HTMLElement>(".gallery .card")];
    const at = cards.indexOf(document.activeElement as HTMLElement);
    cards[Math.max(0, at + step)]?.focus();
  };

  return (
    <section class="gallery" aria-labelledby="gallery-title">
      <h1 id="gallery-title" class="quiet">Gallery</h1>
      <form class="bar" role="search" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
        <label>
          Show{" "}
          <select value={filters.selected || "any"} onChange={(event) => adjust({ selected: event.currentTarget.value })}>
            <option value="any">all images</option>
            <option value="true">selected</option>
            <option value="false">not selected</option>
          </select>
        </label>
        <Choice label="Organ" field="organ" options={about?.organs ?? []} />
        <Choice label="Device" field="device" options={about?.devices ?? []} />
        <Choice label="Label" field="label" options={about?.labels ?? []} />
        <label>
          Cluster{" "}
          <input type="number" min="0" size={5} value={filters.cluster}
                 onChange={(event) => adjust({ cluster: event.currentTarget.value })} />
        </label>
        <label>
          Source contains{" "}
          <input type="search" value={filters.source}
                 onChange={(event) => adjust({ source: event.currentTarget.value })} />
        </label>
        <label>
          Sort by{" "}
          <select value={filters.sort || "dual_rank"} onChange={(event) => adjust({ sort: event.currentTarget.value })}>
            {SORTS.map(([key, text]) => <option value={key}>{text}</option>)}
          </select>
        </label>
      </form>
      <p class="quiet-text" role="status">
        {pages && pages.first === first ? `${number(pages.total)} images` : busy ? "Loading …" : ""}
      </p>
      <div class="grid" onKeyDown={walk}>
        {pages?.first === first && pages?.items.map((sample) => <Card key={sample.image_id} sample={sample} />)}
      </div>
      {pages?.first === first && pages?.total === 0 && <p>No images match these filters.</p>}
      <div ref={end} />
    </section>
  );
}
