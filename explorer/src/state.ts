// What all views share: the pool, the current coreset, the address, and messages.
import { computed, signal } from "@preact/signals";
import { type CoresetSummary, type Pool, Problem, read, routes } from "./api";

export const pool = signal<Pool | null>(null);
export const coresets = signal<CoresetSummary[]>([]);
export const message = signal("");

/** The fragment is the address: `#/gallery?organ=liver`. */
export const fragment = signal(location.hash);
addEventListener("hashchange", () => (fragment.value = location.hash));

export const route = computed(() => {
  const text = fragment.value.replace(/^#\/?/, "");
  const [path = "", search = ""] = text.split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { view: parts[0] ?? "map", argument: parts[1] ?? "", values: new URLSearchParams(search) };
});

/** The coreset of the address, else 'default', else the newest. */
export const coreset = computed(() => {
  const named = route.value.values.get("coreset");
  const names = coresets.value.map((item) => item.name);
  if (named) return named;
  return names.includes("default") ? "default" : (names[0] ?? "");
});

/** The address of a view of the current coreset. */
export function address(path: string, values: Record<string, string | number | null> = {}): string {
  const search = new URLSearchParams();
  const current = route.value.values.get("coreset");
  if (current) search.set("coreset", current);
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === "") search.delete(key);
    else search.set(key, String(value));
  }
  const text = search.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

export function go(to: string): void {
  location.hash = to;
}

/** Change values of the present address; null removes one. */
export function adjust(values: Record<string, string | null>): void {
  const { view, argument } = route.value;
  const search = new URLSearchParams(route.value.values);
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === "") search.delete(key);
    else search.set(key, value);
  }
  const text = search.toString();
  const path = argument ? `${view}/${encodeURIComponent(argument)}` : view;
  history.replaceState(null, "", `#/${path}${text ? `?${text}` : ""}`);
  fragment.value = location.hash;
}

export async function refresh(): Promise<void> {
  try {
    const [about, list] = await Promise.all([read(routes.pool()), read(routes.coresets())]);
    pool.value = about;
    coresets.value = list.items;
  } catch (error) {
    say(error);
  }
}

/** Show a message, or that of an error. */
export function say(what: unknown): void {
  if (what instanceof DOMException && what.name === "AbortError") return;
  if (what instanceof Problem && what.status === 401) return;
  message.value = what instanceof Error ? what.message : String(what);
}

export const number = (value: number): string => value.toLocaleString("en");
export const bytes = (value: number): string =>
  value < 2 ** 20 ? `${(value / 2 ** 10).toFixed(0)} KiB` : `${(value / 2 ** 20).toFixed(1)} MiB`;
export const percent = (value: number): string => `${(100 * value).toFixed(1)}%`;
export const name = (value: string): string => value || "unknown";
export const figure = (value: unknown): string =>
  typeof value === "number"
    ? Number.isInteger(value) ? number(value) : value.toPrecision(4)
    : typeof value === "boolean" ? (value ? "yes" : "no") : value === null ? "—" : String(value);
