// Hooks of the views: data from the service, and keys.
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { type Address, read } from "./api";
import { say } from "./state";

/** The answer to a GET, again for every new `version`; null while it loads and after an error, which is shown. */
export function useAnswer<T>(address: Address<T> | null, version = 0): T | null {
  const [answer, setAnswer] = useState<{ address: string; value: T } | null>(null);
  useEffect(() => {
    if (address === null) return undefined;
    const stop = new AbortController();
    read(address, stop.signal).then((value) => setAnswer({ address, value })).catch(say);
    return () => stop.abort();
  }, [address, version]);
  return answer && answer.address === address ? answer.value : null;
}

/** Handle keys that are pressed outside of fields, while the view is shown. */
export function useKeys(handle: (event: KeyboardEvent) => void): void {
  // In the layout: a key that comes before the next picture finds what was just typed elsewhere.
  useLayoutEffect(() => {
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
