// The service's HTTP interface (docs/api.md): its routes with their types, the token, and requests.
import { signal } from "@preact/signals";
import type { paths } from "./service";

export type {
  ClusterDetails, ClusterSummary, Comparison, CoresetSummary, Count, Estimate, HeldBack, HeldResult, Histogram, ImageDetails, Job,
  Neighbour, Pin, PinBody, Pool, ReviewList, Sample, SelectionKey, Share, Shift, Stats, WithdrawalList, WithdrawalReceipt,
} from "./service";

// The types of a route's parameters, body and answer, from the OpenAPI document.
type Method = "get" | "post" | "delete";
type With<M extends Method> = { [P in keyof paths]: paths[P] extends Record<M, object> ? P : never }[keyof paths];
type Json<T> = T extends { content: { "application/json": infer Body } } ? Body : never;
type Given<T> = [NonNullable<T>] extends [never] ? unknown : NonNullable<T>;
type Values<T> = T extends { parameters: { path?: infer Path; query?: infer Query } } ? Given<Path> & Given<Query> : never;
type Body<T> = T extends { requestBody: infer Content } ? Json<Content> : undefined;
type Answer<T> = T extends { responses: infer Responses } ? Json<Responses[keyof Responses & (200 | 201 | 202)]> : never;
type Optional<T> = object extends T ? [values?: T] : [values: T];

/** The URL of a GET; its type says what the answer is. */
export type Address<T> = string & { readonly answer?: T };

// Every route that the explorer uses; those of files answer with bytes (`ask`), the others with JSON (`read`).
export const routes = {
  pool: get("/v1/pool"),
  coresets: get("/v1/coresets"),
  samples: get("/v1/coresets/{name}/samples"),
  stats: get("/v1/coresets/{name}/stats"),
  compare: get("/v1/compare"),
  clusters: get("/v1/clusters"),
  cluster: get("/v1/clusters/{cluster}"),
  find: get("/v1/images"),
  image: get("/v1/images/{image_id}"),
  thumbnail: get("/v1/images/{image_id}/thumbnail"),
  neighbours: get("/v1/images/{image_id}/neighbours"),
  map: get("/v1/map"),
  selection: get("/v1/selection"),
  jobs: get("/v1/jobs"),
  pins: get("/v1/pins"),
  held: get("/v1/holdings"),
  waste: get("/v1/waste"),
  withdrawals: get("/v1/withdrawals"),
  review: get("/v1/review"),
  reviewPicture: get("/v1/review/{image_id}/picture"),
  lookUp: post("/v1/images/lookup"),
  estimate: post("/v1/selection/estimate"),
  pick: post("/v1/coresets"),
  renameHeld: post("/v1/holdings/{kind}/{name}/name"),
  deleteHeld: remove("/v1/holdings/{kind}/{name}"),
  collect: remove("/v1/waste"),
  previewWithdrawal: post("/v1/withdrawals/preview"),
  withdraw: post("/v1/withdrawals"),
  finishWithdrawal: post("/v1/withdrawals/finish"),
  cancel: remove("/v1/jobs/{job_id}"),
  decide: post("/v1/review/decisions"),
  addPin: post("/v1/pins"),
  removePin: remove("/v1/pins/{pin_id}"),
};

function get<P extends With<"get">>(path: P) {
  type Route = paths[P]["get"];
  return (...[values]: Optional<Values<Route>>): Address<Answer<Route>> => fill(path, values ?? {});
}

function post<P extends With<"post">>(path: P) {
  type Route = paths[P]["post"];
  return (body: Body<Route>, ...[values]: Optional<Values<Route>>): Promise<Answer<Route>> =>
    send("POST", fill(path, (values ?? {}) as object), body);
}

function remove<P extends With<"delete">>(path: P) {
  type Route = paths[P]["delete"];
  return (values: Values<Route>, body: Body<Route>): Promise<Answer<Route>> =>
    send("DELETE", fill(path, values as object), body);
}

/** Put values into a path; the others become its query: empty ones are left out, lists repeat the key. */
function fill(path: string, values: object): string {
  const rest = new URLSearchParams();
  let filled = path.slice(1); // relative, for a service behind a prefix
  for (const [key, value] of Object.entries(values) as [string, unknown][]) {
    if (path.includes(`{${key}}`)) {
      filled = filled.replace(`{${key}}`, encodeURIComponent(String(value)));
      continue;
    }
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== null && item !== undefined && item !== "") rest.append(key, String(item));
    }
  }
  const text = rest.toString();
  return text ? `${filled}?${text}` : filled;
}

/** An error answer of the service; the message is a whole sentence. */
export class Problem extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

const TOKEN_KEY = "echostill-token";
export const signedIn = signal(false);

/** Take the token from the fragment of the URL, where the service's start-up line put it. */
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

/** Send a request with the token; throws a Problem with the service's message. */
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
  } catch {
    // The answer is not the service's own; only its status is known.
  }
  throw new Problem(answer.status, detail);
}

/** Send a GET, again every second while the service is still preparing. */
export async function askPatiently(path: string, signal: AbortSignal, waiting: (message: string) => void): Promise<Response> {
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

/** The JSON answer to a GET. */
export async function read<T>(address: Address<T>, signal?: AbortSignal): Promise<T> {
  const answer = await askPatiently(address, signal ?? new AbortController().signal, () => undefined);
  return answer.json() as Promise<T>;
}

async function send<T>(method: string, path: string, body: unknown): Promise<T> {
  const answer = await ask(path, {
    method,
    headers: { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return answer.json() as Promise<T>;
}
