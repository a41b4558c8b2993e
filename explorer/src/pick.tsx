// Picking a new coreset: a form built from the selection's schema, and the jobs.
import { useEffect, useState } from "preact/hooks";
import { type Job, read, routes, type SelectionKey } from "./api";
import { EstimateOf } from "./estimate";
import { useAnswer } from "./hooks";
import { address, percent, refresh, say } from "./state";

// The keys that are changed most often; all others are under "More settings".
const FIRST = ["budget", "method", "quota", "balance", "only", "seed", "clusters", "max_per_group", "alpha"];
const HIDDEN = new Set(["name", "store", "address", "tracking", "progress"]);

/** A field's text as a value of the schema: a number, JSON, else text. */
function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function Field({ name, property, value, onChange }: {
  name: string; property: SelectionKey; value: string; onChange: (text: string) => void;
}) {
  const options = property.enum ?? property.anyOf?.find((part) => part.enum)?.enum;
  const shown = property.default === null || property.default === undefined ? "" : String(
    typeof property.default === "object" ? JSON.stringify(property.default) : property.default);
  const id = `about-${name}`;
  return (
    <div class="field">
      <label>
        {name.replaceAll("_", " ")}
        {options
          ? <select value={value} aria-describedby={id} onChange={(event) => onChange(event.currentTarget.value)}>
              <option value="">{shown || "default"}</option>
              {options.filter((option) => option !== shown).map((option) => <option value={option}>{option}</option>)}
            </select>
          : <input value={value} aria-describedby={id} placeholder={shown || "none"}
                   onInput={(event) => onChange(event.currentTarget.value)} />}
      </label>
      <small id={id}>{property.description}</small>
    </div>
  );
}

/** A key whose values say what they do: each with its words. */
function Described({ name, property, choices, value, onChange }: {
  name: string; property: SelectionKey; choices: Record<string, string>; value: string; onChange: (text: string) => void;
}) {
  const chosen = value || String(property.default ?? "");
  return (
    <fieldset class="choices">
      <legend>{name.replaceAll("_", " ")}</legend>
      {Object.entries(choices).map(([option, words]) => (
        <label key={option}>
          <input type="radio" name={name} value={option} checked={option === chosen} onChange={() => onChange(option)} />
          <span><strong>{option}</strong> <small>{words}</small></span>
        </label>
      ))}
    </fieldset>
  );
}

function JobRow({ job, onChange }: { job: Job; onChange: () => void }) {
  const going = job.state === "queued" || job.state === "running";
  const cancel = () => routes.cancel({ job_id: job.id }, undefined).then(onChange).catch(say);
  return (
    <li class="job">
      <strong>{job.name}</strong> <span>{job.state}{going && job.stage ? `, ${job.stage}` : ""}</span>
      {going && <progress max={1} value={job.fraction} aria-label={`Progress of ${job.name}`}>{percent(job.fraction)}</progress>}
      {going && <button type="button" onClick={cancel}>Cancel</button>}
      {job.state === "done" && <a href={address("coreset", { coreset: job.name })}>Open</a>}
      {job.state === "done" && <a href={address("compare", { b: job.name })}>Compare</a>}
      {job.message && <span class="quiet-text">{job.message}</span>}
    </li>
  );
}

export function Pick() {
  const schema = useAnswer(routes.selection());
  const [name, setName] = useState("");
  const [values, setValues] = useState<Record<string, string>>({});
  const [jobs, setJobs] = useState<Job[]>([]);
  const load = () => read(routes.jobs()).then((answer) => setJobs(answer.items)).catch(say);
  const going = jobs.filter((job) => job.state === "queued" || job.state === "running").length;
  useEffect(() => {
    void load();
  }, []);
  useEffect(() => {
    if (!going) {
      void refresh();
      return undefined;
    }
    const timer = setInterval(() => void load(), 1000);
    return () => clearInterval(timer);
  }, [going]);
  const wanted: Record<string, unknown> = {};
  for (const [key, text] of Object.entries(values)) if (text.trim() !== "") wanted[key] = parse(text.trim());
  const start = async (event: Event) => {
    event.preventDefault();
    try {
      await routes.pick({ name, ...wanted });
      await load();
    } catch (error) {
      say(error);
    }
  };
  const keys = Object.keys(schema?.properties ?? {}).filter((key) => !HIDDEN.has(key));
  const first = FIRST.filter((key) => keys.includes(key));
  const rest = keys.filter((key) => !first.includes(key));
  const field = (key: string) => {
    const property = schema!.properties[key]!;
    const given = { name: key, property, value: values[key] ?? "", onChange: (text: string) => setValues({ ...values, [key]: text }) };
    return property.choices ? <Described key={key} choices={property.choices} {...given} /> : <Field key={key} {...given} />;
  };
  return (
    <section aria-labelledby="pick-title">
      <h1 id="pick-title">Pick a new coreset</h1>
      <div class="beside">
      <form onSubmit={start} class="pick">
        <div class="field">
          <label>
            name
            <input required pattern="[A-Za-z0-9_.\-]+" value={name} aria-describedby="about-the-name"
                   onInput={(event) => setName(event.currentTarget.value)} />
          </label>
          <small id="about-the-name">A name that is not used yet: coresets are never overwritten.</small>
        </div>
        {schema && first.map(field)}
        {rest.length > 0 && <details><summary>More settings</summary>{rest.map(field)}</details>}
        <button type="submit" class="main" disabled={!schema}>Pick</button>
      </form>
      {schema && <EstimateOf body={wanted} />}
      </div>
      <h2>Jobs</h2>
      <ul class="jobs" aria-live="polite">{jobs.map((job) => <JobRow key={job.id} job={job} onChange={() => void load()} />)}</ul>
      {!jobs.length && <p class="quiet-text">No jobs yet.</p>}
    </section>
  );
}
