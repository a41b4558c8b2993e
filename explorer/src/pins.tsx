// Pins and bans: a dialog to add or remove one, and the list of all.
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { type Pin, type PinBody, routes } from "./api";
import { useAnswer } from "./hooks";
import { address, message, number, refresh, say } from "./state";

/** A pin or ban to add, or the one to remove. */
export interface Request {
  action: PinBody["action"];
  images?: string[];
  cluster?: PinBody["cluster"];
  remove?: Pin;
}

const AUTHOR_KEY = "echostill-author";
const open = signal<Request | null>(null);
export const pinsChanged = signal(0);

export function openPin(request: Request): void {
  open.value = request;
}

export function removePin(pin: Pin): void {
  open.value = { action: pin.action, remove: pin };
}

const images = (count: number): string => (count === 1 ? "1 image" : `${number(count)} images`);

function title(request: Request): string {
  if (request.remove) return `Remove the ${request.action} of ${images(request.remove.images)}`;
  const what = request.cluster
    ? `all images of cluster ${request.cluster.cluster}`
    : request.images!.length === 1 ? "this image" : images(request.images!.length);
  return request.action === "pin" ? `Always select ${what}` : `Never select ${what}`;
}

export function PinDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [author, setAuthor] = useState(localStorage.getItem(AUTHOR_KEY) ?? "");
  const [reason, setReason] = useState("");
  const request = open.value;
  useEffect(() => {
    if (request) dialog.current?.showModal();
    else dialog.current?.close();
  }, [request]);
  const close = () => (open.value = null);
  const save = async (event: Event) => {
    event.preventDefault();
    if (!request) return;
    try {
      localStorage.setItem(AUTHOR_KEY, author);
      if (request.remove) {
        await routes.removePin({ pin_id: request.remove.id }, { author, reason });
      } else {
        const { action, images = [], cluster = null } = request;
        await routes.addPin({ action, images, cluster, author, reason });
      }
      message.value = "Saved. The next coreset that is picked will apply it.";
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
        <h2 id="pin-title">{request ? title(request) : ""}</h2>
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
  const answer = useAnswer(routes.pins({ history: true }), pinsChanged.value);
  return (
    <section aria-labelledby="pins-title">
      <h1 id="pins-title">Pins and bans</h1>
      <p class="quiet-text">The next selection selects every pinned image and no banned one, and gives the pin or ban as the reason.</p>
      {answer && !answer.items.length && <p>Nothing is pinned or banned.</p>}
      {answer && answer.items.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Pins and bans">
          <table>
            <thead><tr><th>Action</th><th>Images</th><th>Author</th><th>Reason</th><th>Time (UTC)</th><th>State</th></tr></thead>
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
                    ? `removed by ${pin.removed.author}`
                    : <button type="button" onClick={() => removePin(pin)}>Remove</button>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
