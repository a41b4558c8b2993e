// A live estimate beside the form: images by organ, and how long the last pick took.
import { useEffect, useState } from "preact/hooks";
import { type Estimate, Problem, routes } from "./api";
import { name, number, say } from "./state";

const PAUSE = 400; // milliseconds after the last key

export function EstimateOf({ body }: { body: Record<string, unknown> }) {
  const [found, setFound] = useState<Estimate | null>(null);
  const [wrong, setWrong] = useState("");
  const text = JSON.stringify(body);
  useEffect(() => {
    let current = true;
    const timer = setTimeout(() => {
      routes.estimate(JSON.parse(text) as Record<string, unknown>)
        .then((answer) => {
          if (!current) return;
          setFound(answer);
          setWrong("");
        })
        .catch((error) => {
          if (!current) return;
          if (error instanceof Problem && error.status >= 400 && error.status < 500) setWrong(error.message);
          else say(error);
        });
    }, PAUSE);
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [text]);
  return (
    <aside class="estimate" aria-labelledby="estimate-title">
      <h2 id="estimate-title">Estimate</h2>
      <div role="status">
        {wrong && <p class="note ban">{wrong}</p>}
        {!wrong && found && (
          <>
            <p>{number(found.budget)} of {number(found.images)} images, {number(found.clusters)} clusters.{" "}
              {found.seconds !== null && `The last pick here took ${number(Math.round(found.seconds))} s.`}</p>
            <table>
              <caption>{found.balanced ? "Images by organ" : "By organ, if it is made up as the pool is"}</caption>
              <thead><tr><th>organ</th><th>pool</th><th>coreset</th></tr></thead>
              <tbody>{found.organs.map((row) => (
                <tr key={row.value}><td>{name(row.value)}</td><td>{number(row.images)}</td><td>{number(row.selected)}</td></tr>
              ))}</tbody>
            </table>
          </>
        )}
      </div>
    </aside>
  );
}
