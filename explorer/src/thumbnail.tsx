// Pictures: fetched with the token when they become visible, cached as blobs, a few at a time.
import { useEffect, useRef, useState } from "preact/hooks";
import { ask, routes, type Sample } from "./api";
import { address } from "./state";

const CACHED = 400; // pictures
const CONCURRENT = 6; // requests

const cache = new Map<string, string>();
const waiting: (() => void)[] = [];
let running = 0;

async function slot(): Promise<void> {
  if (running >= CONCURRENT) await new Promise<void>((resolve) => waiting.push(resolve));
  running += 1;
}

function release(): void {
  running -= 1;
  waiting.pop()?.(); // the newest first: it is most likely visible
}

async function picture(path: string, signal: AbortSignal): Promise<string> {
  const known = cache.get(path);
  if (known) return known;
  await slot();
  try {
    if (signal.aborted) throw new DOMException("", "AbortError");
    const blob = await (await ask(path, { signal })).blob();
    const url = URL.createObjectURL(blob);
    cache.set(path, url);
    if (cache.size > CACHED) {
      const [oldest, address] = cache.entries().next().value!;
      cache.delete(oldest);
      URL.revokeObjectURL(address);
    }
    return url;
  } finally {
    release();
  }
}

export function Picture({ path, alt }: { path: string; alt: string }) {
  const box = useRef<HTMLSpanElement>(null);
  const [state, setState] = useState<{ path: string; url: string | null; failed: boolean }>();
  useEffect(() => {
    const stop = new AbortController();
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      picture(path, stop.signal)
        .then((url) => setState({ path, url, failed: false }))
        .catch(() => stop.signal.aborted || setState({ path, url: null, failed: true }));
    }, { rootMargin: "200px" });
    watch.observe(box.current!);
    return () => {
      stop.abort();
      watch.disconnect();
    };
  }, [path]);
  const here = state?.path === path ? state : undefined;
  return (
    <span class="picture" ref={box}>
      {here?.url
        ? <img src={here.url} alt={alt} decoding="async" />
        : <span class="blank" role="img" aria-label={alt}>{here?.failed ? "no picture" : ""}</span>}
    </span>
  );
}

/** The staged picture of an image. */
export function Thumbnail({ id, size, alt }: { id: string; size: number; alt: string }) {
  return <Picture path={routes.thumbnail({ image_id: id, size })} alt={alt} />;
}

const MARKS: Record<string, string> = { pin: "pinned", ban: "banned", selected: "selected" };

/** A picture with its source and state; links to the image's page. */
export function Card({ sample, note }: { sample: Sample; note?: string }) {
  const mark = sample.pin ?? (sample.selected ? "selected" : "");
  return (
    <a class={`card ${sample.selected ? "selected" : ""}`}
       href={address(`image/${sample.image_id}`)} title={sample.reason ?? undefined}>
      <Thumbnail id={sample.image_id} size={160} alt={`${sample.organ || "image"}, ${sample.source}`} />
      <span class="caption">
        <span>{note ?? sample.source.split("/").pop()}</span>
        {mark && <span class={`mark ${mark}`}>{MARKS[mark]}</span>}
      </span>
    </a>
  );
}
