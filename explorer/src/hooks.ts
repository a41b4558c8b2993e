// Loading data inside views.
import { useEffect, useState } from "preact/hooks";
import { get } from "./api";
import { say } from "./state";

/** The answer to a GET; null while it is on the way or after an error, which is shown. */
export function useAnswer<T>(path: string | null): T | null {
  const [answer, setAnswer] = useState<{ path: string; value: T } | null>(null);
  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    get<T>(path, stop.signal).then((value) => setAnswer({ path, value })).catch(say);
    return () => stop.abort();
  }, [path]);
  return answer && answer.path === path ? answer.value : null;
}

/** Call while the view is shown, on keys that are pressed outside of fields. */
export function useKeys(handle: (event: KeyboardEvent) => void): void {
  useEffect(() => {
    const listen = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (target.closest("input, select, textarea, dialog")) return;
      handle(event);
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  });
}
