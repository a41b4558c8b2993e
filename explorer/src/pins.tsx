// Curation by hand: a dialog to pin or ban, and the list of what was decided.
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { type Pin, send } from "./api";
import { useAnswer } from "./hooks";
import { address, message, number, refresh, say } from "./state";

export interface Request {
  action: "pin" | "ban";
  images?: string[];
  cluster?: { coreset: string; cluster: number };
  takeBack?: Pin;
}

const AUTHOR_KEY = "echostill-author";
const asked = signal<Request | null>(null);
export const pinsChanged = signal(0);

export function openPin(request: Request): void {
  asked.value = request;
}

export function removePin(pin: Pin): void {
  asked.value = { action: pin.action, takeBack: pin };
}

function words(request: Request): string {
  if (request.takeBack) return `Take back: ${request.action} of ${number(request.takeBack.images)} image(s)`;
  const what = request.cluster
    ? `all images of cluster ${request.cluster.cluster}`
    : request.images!.length === 1 ? "this image" : `${request.images!.length} images`;
  return request.action === "pin" ? `Always choose ${what}` : `Never choose ${what}`;
}

export function PinDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [author, setAuthor] = useState(localStorage.getItem(AUTHOR_KEY) ?? "");
  const [reason, setReason] = useState("");
  const request = asked.value;
  useEffect(() => {
    if (request) dialog.current?.showModal();
    else dialog.current?.close();
  }, [request]);
  const close = () => (asked.value = null);
  const save = async (event: Event) => {
    event.preventDefault();
    if (!request) return;
    try {
      localStorage.setItem(AUTHOR_KEY, author);
      if (request.takeBack) {
        await send("DELETE", `v1/pins/${encodeURIComponent(request.takeBack.id)}`, { author, reason });
      } else {
        const { action, images, cluster } = request;
        await send("POST", "v1/pins", { action, images, cluster, author, reason });
      }
      message.value = "Noted. The next coreset that is picked respects it.";
      setReason("");
      close();
      pinsChanged.value += 1;
      await refresh();
    } catch (error) {
      say(error);
    }
  };
  return (
    <dialog ref={dialog} onClose={close} aria-labelledby="pin-title">
      <form onSubmit={save}>
        <h2 id="pin-title">{request ? words(request) : ""}</h2>
        <label>Your name <input required maxLength={200} value={author}
          onInput={(event) => setAuthor(event.currentTarget.value)} /></label>
        <label>Reason <textarea required maxLength={1000} rows={3} value={reason}
          onInput={(event) => setReason(event.currentTarget.value)} /></label>
        <div class="bar">
          <button type="submit" class="main">Save</button>
          <button type="button" onClick={close}>Cancel</button>
        </div>
      </form>
    </dialog>
  );
}

export function Pins() {
  const changes = pinsChanged.value;
  const answer = useAnswer<{ items: Pin[] }>(`v1/pins?history=true&_=${changes}`);
  return (
    <section aria-labelledby="pins-title">
      <h1 id="pins-title">Decided by hand</h1>
      <p class="quiet-text">The next selection takes every pinned image and no banned one, and says so.</p>
      {answer && !answer.items.length && <p>Nothing is pinned or banned.</p>}
      {answer && answer.items.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Decisions">
          <table>
            <thead><tr><th>What</th><th>Images</th><th>By</th><th>Reason</th><th>When</th><th>State</th></tr></thead>
            <tbody>
              {answer.items.map((pin) => (
                <tr key={pin.id}>
                  <td>{pin.action} {pin.kind === "cluster" ? `cluster ${pin.cluster} of ${pin.coreset}` : ""}</td>
                  <td>
                    {pin.image_ids.slice(0, 3).map((id) => <a href={address(`image/${id}`)}>{id.slice(0, 8)} </a>)}
                    {pin.images > 3 && `and ${number(pin.images - 3)} more`}
                  </td>
                  <td>{pin.author}</td><td>{pin.reason}</td><td>{pin.time.slice(0, 16).replace("T", " ")}</td>
                  <td>{pin.removed
                    ? `taken back by ${pin.removed.author}`
                    : <button type="button" onClick={() => removePin(pin)}>Take back</button>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
