// Review: frames that de-identification held back, shown before and after, approved or rejected.
import { useEffect, useRef, useState } from "preact/hooks";
import { type Count, type HeldBack, read, type ReviewList, routes } from "./api";
import { useAnswer, useKeys } from "./hooks";
import { adjust, message, name, number, percent, route, say } from "./state";
import { Picture } from "./thumbnail";

type Decision = "approve" | "reject" | "undo";
interface Signed { decision: Decision; author: string; reason: string }
type Facet = keyof ReviewList["facets"];

const PAGE = 60; // frames
const QUIET = 3000; // milliseconds without a decision, after which the last ones are saved
const FULL = 50; // decisions that are saved at once
const AUTHOR_KEY = "echostill-author";
const REASON_KEY = "echostill-review-reason";
const FACETS: [Facet, string][] = [
  ["state", "State"], ["reason", "Reason"], ["organ", "Organ"], ["device", "Device"], ["group_id", "Group"],
];
const SORTS: [string, string][] = [
  ["group_id", "group"], ["-score", "most likely text"], ["score", "least likely text"],
  ["-redacted", "most redacted"], ["image_id", "id"],
];
const STATES: Record<Decision, HeldBack["state"]> = { approve: "approved", reject: "rejected", undo: "open" };

/** Text that is kept in this browser from one visit to the next. */
function useKept(key: string): [string, (value: string) => void] {
  const [value, setValue] = useState(localStorage.getItem(key) ?? "");
  return [value, (next) => {
    localStorage.setItem(key, next);
    setValue(next);
  }];
}

function Choice({ label, field, options }: { label: string; field: Facet; options: Count[] }) {
  const value = route.value.values.get(field) ?? (field === "state" ? "open" : "");
  const known = options.filter((option) => option.value !== "");
  if (!known.length && !value) return null;
  return (
    <label>
      {label}{" "}
      <select value={value} onChange={(event) => adjust({ [field]: event.currentTarget.value || (field === "state" ? "any" : null), from: null })}>
        <option value="">any</option>
        {value && value !== "any" && !known.some((option) => option.value === value) && <option value={value}>{value} (0)</option>}
        {known.map((option) => <option value={option.value}>{name(option.value)} ({number(option.images)})</option>)}
      </select>
    </label>
  );
}

function Frame({ frame, state, choose }: { frame: HeldBack; state: HeldBack["state"]; choose: (id: string, decision: Decision) => void }) {
  const facts = [
    frame.reason, `text ${frame.score.toFixed(2)}`,
    frame.redacted > 0 && `redacted ${percent(frame.redacted)}`, frame.organ, frame.device,
  ].filter(Boolean).join(", ");
  return (
    <article class={`card frame ${state}`} tabIndex={0} data-id={frame.image_id}
             aria-label={`${frame.source || frame.image_id}: ${facts}; ${state}`}>
      {frame.picture
        ? <Picture path={routes.reviewPicture({ image_id: frame.image_id })} alt="before and after cleaning" />
        : <span class="blank" role="img" aria-label="no picture was written">no picture</span>}
      <span class="caption"><span>{facts}</span><span class={`mark ${state}`}>{state}</span></span>
      <span class="caption quiet-text">{frame.source}{frame.decided_by && ` · ${frame.decided_by}: ${frame.decided_reason}`}</span>
      <span class="bar">
        <button type="button" tabIndex={-1} disabled={!frame.approvable} onClick={() => choose(frame.image_id, "approve")}>Approve</button>
        <button type="button" tabIndex={-1} onClick={() => choose(frame.image_id, "reject")}>Reject</button>
        {state !== "open" && <button type="button" tabIndex={-1} onClick={() => choose(frame.image_id, "undo")}>Undo</button>}
      </span>
    </article>
  );
}

export function Review() {
  const values = route.value.values;
  const [author, setAuthor] = useKept(AUTHOR_KEY);
  const [reason, setReason] = useKept(REASON_KEY);
  const [version, setVersion] = useState(0);
  const [made, setMade] = useState<Record<string, Decision>>({}); // not yet in the list that is shown
  const unsaved = useRef<Record<string, Signed>>({}); // each with what its author had given when deciding
  const timer = useRef(0);
  const saved = useRef(Promise.resolve()); // settles when all that was sent is stored, in order

  const offset = Number(values.get("from") ?? 0);
  const chosen = Object.fromEntries(FACETS.map(([field]) => {
    const value = values.get(field) ?? (field === "state" ? "open" : "");
    return [field, value && value !== "any" ? [value] : []];
  })) as Record<Facet, string[]>;
  const most = Number(values.get("most") ?? 1);
  const sort = values.get("sort") ?? "group_id";
  const list = useAnswer(routes.review({ ...chosen, most, sort, offset, limit: PAGE }), version);

  const signed = () => {
    if (author.trim() && reason.trim()) return true;
    message.value = "Give your name and a reason first: both are stored with each decision.";
    return false;
  };
  const reload = () => {
    setMade({});
    setVersion((old) => old + 1);
  };
  const save = () => {
    clearTimeout(timer.current);
    saved.current = saved.current.then(send);
    return saved.current;
  };
  const send = async () => {
    const decided = unsaved.current;
    unsaved.current = {};
    try {
      const alike = new Map<string, string[]>();
      for (const [id, signed] of Object.entries(decided)) {
        const key = JSON.stringify(signed);
        alike.set(key, [...(alike.get(key) ?? []), id]);
      }
      for (const [key, images] of alike) await routes.decide({ ...JSON.parse(key) as Signed, images });
    } catch (error) {
      unsaved.current = { ...decided, ...unsaved.current };
      say(error);
    }
  };
  useEffect(() => () => void save(), []);

  const choose = (id: string, decision: Decision) => {
    const frame = list?.items.find((item) => item.image_id === id);
    if (!frame || !signed()) return;
    if (decision === "approve" && !frame.approvable) {
      message.value = "This frame has no cleaned pixels to approve.";
      return;
    }
    unsaved.current[id] = { decision, author, reason };
    setMade((old) => ({ ...old, [id]: decision }));
    clearTimeout(timer.current);
    if (Object.keys(unsaved.current).length >= FULL) void save();
    else timer.current = setTimeout(save, QUIET) as unknown as number;
  };
  const all = async (decision: Decision) => {
    if (!list || !signed()) return;
    if (!confirm(`${decision === "approve" ? "Approve" : "Reject"} all ${number(list.total)} frames that the filter shows?`)) return;
    await save();
    try {
      // What was decided one by one has changed what the filter shows.
      const left = await read(routes.review({ ...chosen, most, sort, limit: 1 }));
      const found = await routes.decide({ decision, images: [], author, reason, filter: { ...chosen, least: 0, most, frames: left.total } });
      message.value = `${number(found.decided)} decided${found.left.length ? `; ${number(found.left.length)} have no cleaned pixels to approve` : ""}.`;
    } catch (error) {
      say(error);
    }
    reload();
  };
  const now = (frame: HeldBack) => made[frame.image_id] ? STATES[made[frame.image_id]!] : frame.state;
  const turn = async (by: 1 | -1) => {
    if (!list) return;
    await save();
    // Those that were decided leave the list if it shows one state only.
    const staying = list.items.filter((frame) => !chosen.state.length || chosen.state.includes(now(frame)));
    const start = by > 0 ? offset + staying.length : Math.max(0, offset - PAGE);
    adjust({ from: start ? String(start) : null });
    reload();
  };

  const cards = () => [...document.querySelectorAll<HTMLElement>(".review .frame")];
  const step = (by: number) => {
    const found = cards();
    const at = found.indexOf(document.activeElement as HTMLElement);
    found[Math.max(0, Math.min(found.length - 1, at + by))]?.focus();
  };
  useKeys((event) => {
    const decision = ({ a: "approve", r: "reject", u: "undo" } as Record<string, Decision>)[event.key];
    const id = (document.activeElement as HTMLElement | null)?.dataset.id;
    if (decision && id) {
      choose(id, decision);
      step(1);
      return;
    }
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    step(move);
  });

  if (!list) return <section class="review"><h1 class="quiet">Review</h1><p role="status">Loading …</p></section>;
  const end = offset + list.items.length;
  return (
    <section class="review" aria-labelledby="review-title">
      <h1 id="review-title">Review</h1>
      <p class="quiet-text">
        Frames that de-identification held back, before and after cleaning: <strong>they are identifiable</strong>. The next ingest
        adds approved frames to the pool, as cleaned; rejected ones stay out. Keys: <kbd>a</kbd> approve, <kbd>r</kbd> reject,{" "}
        <kbd>u</kbd> undo, arrows move.
      </p>
      <form class="bar" onSubmit={(event) => event.preventDefault()}>
        <label>Your name <input required maxLength={200} value={author} onInput={(event) => setAuthor(event.currentTarget.value)} /></label>
        <label class="wide">Reason <input required maxLength={1000} size={40} value={reason} placeholder="scale marks, no text"
          onInput={(event) => setReason(event.currentTarget.value)} /></label>
      </form>
      <form class="bar" role="search" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
        {FACETS.map(([field, label]) => <Choice label={label} field={field} options={list.facets[field]} />)}
        <label>Text score up to{" "}
          <input type="number" min="0" max="1" step="0.05" value={most}
            onChange={(event) => adjust({ most: event.currentTarget.value === "1" ? null : event.currentTarget.value, from: null })} />
        </label>
        <label>Sort{" "}
          <select value={sort} onChange={(event) => adjust({ sort: event.currentTarget.value, from: null })}>
            {SORTS.map(([key, text]) => <option value={key}>{text}</option>)}
          </select>
        </label>
      </form>
      <div class="bar">
        <span role="status">{number(list.total)} of {number(list.held_back)} frames held back</span>
        <button type="button" disabled={!list.total} onClick={() => void all("approve")}>Approve all shown</button>
        <button type="button" disabled={!list.total} onClick={() => void all("reject")}>Reject all shown</button>
        <button type="button" disabled={!offset} onClick={() => void turn(-1)}>Previous</button>
        <span>{list.items.length ? `${number(offset + 1)} to ${number(end)}` : "none"}</span>
        <button type="button" disabled={end >= list.total} onClick={() => void turn(1)}>Next</button>
        <button type="button" onClick={() => void save().then(reload)}>Save and reload</button>
        <span class="quiet-text">{Object.keys(made).length > 0 && `${number(Object.keys(made).length)} decided here`}</span>
      </div>
      <div class="grid wide">
        {list.items.map((frame) => (
          <Frame key={frame.image_id} frame={frame} state={now(frame)} choose={choose} />
        ))}
      </div>
      {!list.held_back && <p>No frame is held back.</p>}
    </section>
  );
}
