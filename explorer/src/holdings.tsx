// What the store holds under names: coresets, runs, reports; deleted and renamed after a question.
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { type HeldResult, read, routes } from "./api";
import { useAnswer } from "./hooks";
import { address, bytes, message, refresh, say } from "./state";

type Kind = "coresets" | "runs" | "reports" | "teacher-cache" | "sweeps";
const KINDS: [Kind, string][] = [
  ["coresets", "Coresets"], ["runs", "Runs"], ["reports", "Reports"], ["teacher-cache", "Teacher caches"], ["sweeps", "Sweeps"],
];
const RENAMED: Kind[] = ["coresets", "reports", "teacher-cache"]; // a run has its name from its student and seed
const NOT_HERE = "(not in the store)";

interface Change {
  action: "delete" | "rename";
  result: HeldResult;
}

const open = signal<Change | null>(null);
const changed = signal(0);

const parts = (result: HeldResult) => ({ kind: result.place.split("/")[0] as Kind, name: result.name });
const day = (time: string): string => time.slice(0, 16).replace("T", " ");

/** Ask the service what a deletion would be, then the person. */
async function ask(result: HeldResult): Promise<void> {
  try {
    const found = await routes.deleteHeld({ ...parts(result), dry_run: true }, undefined);
    open.value = { action: "delete", result: found.result };
  } catch (error) {
    say(error);
  }
}

function ChangeDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [name, setName] = useState("");
  const [agreed, setAgreed] = useState(false);
  const change = open.value;
  useEffect(() => {
    setName("");
    setAgreed(false);
    if (change) dialog.current?.showModal();
    else dialog.current?.close();
  }, [change]);
  const close = () => (open.value = null);
  const used = change?.result.used_by ?? [];
  const save = async (event: Event) => {
    event.preventDefault();
    if (!change) return;
    try {
      if (change.action === "delete") {
        await routes.deleteHeld({ ...parts(change.result), force: agreed }, undefined);
        message.value = `Deleted ${change.result.place}.`;
      } else {
        const renamed = await routes.renameHeld({ name }, parts(change.result));
        message.value = `${change.result.place} is now ${renamed.place}.`;
      }
      close();
      changed.value += 1;
      await refresh();
    } catch (error) {
      close();
      say(error);
    }
  };
  return (
    <dialog ref={dialog} onClose={close} aria-labelledby="change-title">
      {change && (
        <form onSubmit={save}>
          <h2 id="change-title">{change.action === "delete" ? "Delete" : "Rename"} {change.result.place}</h2>
          {change.action === "rename" && (
            <label>New name <input required pattern="[A-Za-z0-9][A-Za-z0-9_.\-]*" value={name}
              onInput={(event) => setName(event.currentTarget.value)} /></label>
          )}
          {change.action === "delete" && (
            <p>{bytes(change.result.bytes)}{change.result.details && `, ${change.result.details}`}. This cannot be undone.</p>
          )}
          {change.action === "delete" && used.length > 0 && (
            <label class="agree">
              <input type="checkbox" required checked={agreed} onChange={(event) => setAgreed(event.currentTarget.checked)} />{" "}
              Although {used.join(", ")} {used.length === 1 ? "was" : "were"} made from it. What was made stays, and can still be read.
            </label>
          )}
          <div class="bar">
            <button type="submit" class="main">{change.action === "delete" ? "Delete" : "Rename"}</button>
            <button type="button" onClick={close}>Cancel</button>
          </div>
        </form>
      )}
    </dialog>
  );
}

export function madeFrom(result: HeldResult): string {
  const here = [...new Set(Object.values(result.made_from))].filter((origin) => origin !== NOT_HERE);
  const gone = Object.entries(result.made_from).filter(([, origin]) => origin === NOT_HERE).map(([input]) => `another ${input}`);
  return [...here, ...gone].join(", ") || "—";
}

function Row({ result }: { result: HeldResult }) {
  const kind = parts(result).kind;
  const label = (action: string) => `${action} ${result.place}`;
  return (
    <tr>
      <th scope="row">{kind === "coresets" && result.finished
        ? <a href={address("coreset", { coreset: result.name })}>{result.name}</a> : result.name}</th>
      <td>{result.finished ? result.details : "not finished"}</td>
      <td>{day(result.written) || "—"}</td>
      <td>{bytes(result.bytes)}</td>
      <td>{madeFrom(result)}</td>
      <td>{result.used_by.join(", ") || "—"}</td>
      <td class="actions">
        {RENAMED.includes(kind) && result.finished &&
          <button type="button" aria-label={label("Rename")} onClick={() => (open.value = { action: "rename", result })}>Rename</button>}
        <button type="button" aria-label={label("Delete")} onClick={() => void ask(result)}>Delete</button>
      </td>
    </tr>
  );
}

/** What the store does not need; deleted as it is listed. */
function NotNeeded() {
  const items = useAnswer(routes.waste(), changed.value)?.items ?? [];
  const [sure, setSure] = useState(false);
  if (items.length === 0) return null;
  const collect = async (event: Event) => {
    event.preventDefault();
    try {
      const gone = await routes.collect({} as never, { places: items.map((item) => item.place) });
      message.value = `Deleted ${gone.places.length}, ${bytes(gone.bytes)}.`;
      setSure(false);
      changed.value += 1;
      await refresh();
    } catch (error) {
      say(error);
    }
  };
  return (
    <form onSubmit={collect} class="screen">
      <div class="scroll" tabIndex={0} role="region" aria-label="Not needed">
        <table>
          <caption>Not needed</caption>
          <thead><tr><th>What</th><th>Size</th><th>Why</th></tr></thead>
          <tbody>{items.map((item) => (
            <tr key={item.place}><th scope="row">{item.place}</th><td>{bytes(item.bytes)}</td><td>{item.reason}</td></tr>
          ))}</tbody>
        </table>
      </div>
      <label class="agree">
        <input type="checkbox" required checked={sure} onChange={(event) => setSure(event.currentTarget.checked)} />{" "}
        This cannot be undone.
      </label>
      <button type="submit">Delete what is not needed</button>
    </form>
  );
}

export function Holdings() {
  const answer = useAnswer(routes.held(), changed.value);
  const known = answer?.items ?? [];
  return (
    <section aria-labelledby="holdings-title">
      <h1 id="holdings-title">What the store holds</h1>
      {!answer && <p role="status">Loading …</p>}
      {KINDS.map(([kind, title]) => {
        const rows = known.filter((result) => parts(result).kind === kind);
        return rows.length > 0 && (
          <div class="scroll" tabIndex={0} role="region" aria-label={title} key={kind}>
            <table>
              <caption>{title}</caption>
              <thead><tr><th>Name</th><th>What</th><th>Written (UTC)</th><th>Size</th><th>Made from</th><th>Used by</th>
                <th><span class="quiet">Actions</span></th></tr></thead>
              <tbody>{rows.map((result) => <Row key={result.place} result={result} />)}</tbody>
            </table>
          </div>
        );
      })}
      {answer && known.length === 0 && <p>Nothing yet: <a href={address("pick")}>pick a coreset</a>.</p>}
      <NotNeeded />
      <ChangeDialog />
    </section>
  );
}

/** What the store says of one coreset; null until it is known. */
export function useHeld(name: string): HeldResult | null {
  const [held, setHeld] = useState<HeldResult | null>(null);
  useEffect(() => {
    if (!name) return undefined;
    const stop = new AbortController();
    read(routes.held({ kind: "coresets" }), stop.signal)
      .then((answer) => setHeld(answer.items.find((item) => item.name === name) ?? null))
      .catch(say);
    return () => stop.abort();
  }, [name]);
  return held?.name === name ? held : null;
}
