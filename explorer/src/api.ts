// The service's HTTP interface (docs/api.md): types, the token, and one way to ask.
import { signal } from "@preact/signals";

const TOKEN_KEY = "echostill-token";

export interface Count { value: string; images: number }
export interface Pool {
  version: string; store: string; images: number; scored: number; dimension: number;
  quarantined: Record<string, number>;
  organs: Count[]; devices: Count[]; labels: Count[]; coresets: string[];
  index: { state: string; stage: string; fraction: number; message: string };
  map: { state: string };
  pins: { pinned: number; banned: number };
}
export interface CoresetItem {
  name: string; images: number; budget: number; clusters: number; method: string; seed: number;
  digest: string; created: string;
}
export interface Sample {
  image_id: string; row: number; group_id: string; source: string; organ: string; device: string;
  label: string; frame: number; width: number; height: number;
  cluster: number | null; cluster_size: number; cluster_rank: number;
  distance: number; distance_rank: number; gradient: number; gradient_rank: number;
  dual_rank: number; quota: number; selected: boolean; reason: string; pin: "pin" | "ban" | null;
}
export interface Page<T> { items: T[]; total: number; next: string | null }
export interface Cluster {
  cluster: number; size: number; quota: number; selected: number; mean_distance: number;
  typical: string; organs: Count[];
}
export interface ClusterDetail extends Cluster { devices: Count[]; members: Sample[] }
export interface Share { value: string; images: number; selected: number; share: number }
export interface Histogram { edges: number[]; pool: number[]; selected: number[] }
export interface Stats {
  name: string; images: number; selected: number;
  groups: { pool: number; selected: number };
  by: Record<string, Share[]>;
  clusters: Record<string, number>;
  histograms: Record<string, Histogram>;
}
export interface Shift {
  value: string; images: number; a: number; b: number; share_a: number; share_b: number; shift: number;
}
export interface Comparison {
  a: string; b: string; selected: { a: number; b: number }; both: number; only_a: number;
  only_b: number; jaccard: number; text: string; entered: string[]; left: string[];
  by: Record<string, Shift[]>;
}
export interface Pin {
  id: string; action: "pin" | "ban"; kind: "image" | "cluster"; coreset: string | null;
  cluster: number | null; image_ids: string[]; images: number; author: string; reason: string;
  time: string; removed?: { author: string; reason: string; time: string } | null;
}
export interface ImageDetail {
  image: Record<string, unknown> & { image_id: string; source: string; row: number };
  scores: Record<string, number> | null;
  coreset: (Record<string, unknown> & {
    name: string; cluster: number; cluster_rank: number; cluster_size: number;
    distance_rank: number; gradient_rank: number; dual_rank: number; quota: number;
    selected: boolean; reason: string;
  }) | null;
  why: {
    text: string;
    values: Record<string, unknown> & {
      last_chosen?: { image_id: string; cluster_rank: number; dual_rank: number } | null;
      next_not_chosen?: { image_id: string; cluster_rank: number; dual_rank: number } | null;
    };
  };
  pins: Pin[];
}
export interface Job {
  id: string; name: string; state: "queued" | "running" | "done" | "failed" | "cancelled";
  stage: string; fraction: number; message: string; created: string; coreset: string | null;
}
export interface Neighbour { similarity: number; sample: Sample }

/** An answer of the service that is not what was asked for; the message is a whole sentence. */
export class Problem extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

export const signedIn = signal(false);

/** Take the token from the address's fragment, where the service's start-up line put it. */
export function takeToken(): void {
  const found = /^#token=([^&]+)$/.exec(location.hash);
  if (found) {
    sessionStorage.setItem(TOKEN_KEY, decodeURIComponent(found[1]!));
    history.replaceState(null, "", location.pathname + location.search);
  }
  signedIn.value = sessionStorage.getItem(TOKEN_KEY) !== null;
}

export function setToken(token: string): void {
  sessionStorage.setItem(TOKEN_KEY, token.trim());
  signedIn.value = true;
}

/** Ask the service; throws a Problem with its own words. */
export async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  headers.set("Authorization", `Bearer ${sessionStorage.getItem(TOKEN_KEY) ?? ""}`);
  let answer: Response;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. Is `echostill serve` still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    sessionStorage.removeItem(TOKEN_KEY);
    signedIn.value = false;
  }
  let detail = `${answer.status} ${answer.statusText}`;
  try {
    const problem = await answer.json();
    detail = problem.detail ?? problem.title ?? detail;
    const errors = (problem.errors ?? []) as { where: string; message: string }[];
    if (errors.length) detail += " " + errors.map((e) => `${e.where}: ${e.message}`).join("; ");
  } catch {
    // Not the service's own words: the status has to do.
  }
  throw new Problem(answer.status, detail);
}

/** Ask, and ask again each second while the service says that it is still preparing. */
export async function askPatiently(path: string, signal: AbortSignal, waiting: (words: string) => void): Promise<Response> {
  for (;;) {
    try {
      return await ask(path, { signal });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 503) throw error;
      waiting(error.message);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (signal.aborted) throw new DOMException("", "AbortError");
    }
  }
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  const answer = await askPatiently(path, signal ?? new AbortController().signal, () => undefined);
  return answer.json() as Promise<T>;
}

export async function send<T>(method: string, path: string, body?: unknown): Promise<T> {
  const answer = await ask(path, {
    method,
    headers: { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return answer.json() as Promise<T>;
}

/** A query string of the given values; absent and empty ones are left out, lists repeat the key. */
export function query(values: Record<string, string | number | string[] | null | undefined>): string {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") continue;
    for (const item of Array.isArray(value) ? value : [value]) parts.append(key, String(item));
  }
  const text = parts.toString();
  return text ? `?${text}` : "";
}
