// One image: the picture, why it is (not) in the coreset, its neighbours and its cluster.
import { type Cluster, type ClusterDetail, type ImageDetail, type Neighbour, query, type Sample } from "./api";
import { useAnswer, useKeys } from "./hooks";
import { openPin, removePin } from "./pins";
import { address, coreset, figure, name, number } from "./state";
import { Card, Picture } from "./thumbnail";

/** The sentence people come for. */
function Verdict({ detail }: { detail: ImageDetail }) {
  const row = detail.coreset;
  if (!row) return <p class="verdict">{detail.why.text.split("\n")[0]}</p>;
  const next = detail.why.values.next_not_chosen;
  const last = detail.why.values.last_chosen;
  return (
    <div class={`verdict ${row.selected ? "chosen" : ""}`}>
      <p><strong>{row.selected ? "In the coreset" : "Not in the coreset"}</strong> “{row.name}”: {row.reason}.</p>
      <dl class="facts">
        <div><dt>place in its cluster</dt><dd>{number(row.cluster_rank)} of {number(row.cluster_size)}</dd></div>
        <div><dt>quota of the cluster</dt><dd>{number(row.quota)}</dd></div>
        <div><dt>distance</dt><dd>{number(row.distance_rank)}. nearest to the centroid</dd></div>
        <div><dt>gradient</dt><dd>{number(row.gradient_rank)}. largest</dd></div>
        <div><dt>dual rank</dt><dd>{figure(row.dual_rank)}</dd></div>
        {last && <div><dt>last chosen</dt><dd><a href={address(`image/${last.image_id}`)}>{figure(last.dual_rank)}</a></dd></div>}
        {next && <div><dt>next not chosen</dt><dd><a href={address(`image/${next.image_id}`)}>{figure(next.dual_rank)}</a></dd></div>}
      </dl>
    </div>
  );
}

function Row({ title, children }: { title: string; children: preact.ComponentChildren }) {
  return <section><h2>{title}</h2>{children}</section>;
}

export function ImageView({ id }: { id: string }) {
  const asked = query({ coreset: coreset.value });
  const detail = useAnswer<ImageDetail>(`v1/images/${encodeURIComponent(id)}${asked}`);
  const around = useAnswer<{ items: Neighbour[] }>(
    `v1/images/${encodeURIComponent(id)}/neighbours${query({ coreset: coreset.value, k: 12 })}`);
  const cluster = detail?.coreset?.cluster;
  const mates = useAnswer<ClusterDetail>(
    cluster === undefined ? null : `v1/clusters/${cluster}${asked}`);
  const act = (action: "pin" | "ban") => detail && openPin({ action, images: [detail.image.image_id] });
  useKeys((event) => {
    if (event.key === "p") act("pin");
    if (event.key === "b") act("ban");
  });
  if (!detail) return <p role="status">looking …</p>;
  const { image, scores } = detail;
  const text = `${name(String(image.organ ?? ""))}, ${image.source}`;
  return (
    <article class="image">
      <div class="image-head">
        <Picture id={image.image_id} size={512} alt={text} />
        <div>
          <h1>{image.source}</h1>
          <p class="id">{image.image_id}</p>
          <Verdict detail={detail} />
          {detail.pins.map((pin) => (
            <p class={`note ${pin.action}`}>
              {pin.action === "pin" ? "Pinned" : "Banned"} by {pin.author}: {pin.reason}{" "}
              <button type="button" onClick={() => removePin(pin)}>Take back</button>
            </p>
          ))}
          <div class="bar">
            <button type="button" onClick={() => act("pin")}>Pin <kbd>p</kbd></button>
            <button type="button" onClick={() => act("ban")}>Ban <kbd>b</kbd></button>
          </div>
          <details>
            <summary>The whole answer</summary>
            <pre tabIndex={0}>{detail.why.text}</pre>
          </details>
          <details>
            <summary>All values</summary>
            <dl class="facts">
              {Object.entries({ ...image, ...(scores ?? {}) })
                .filter(([, value]) => typeof value !== "object" || value === null)
                .map(([key, value]) => <div><dt>{key.replaceAll("_", " ")}</dt><dd>{figure(value)}</dd></div>)}
            </dl>
          </details>
        </div>
      </div>
      <Row title="Nearest neighbours">
        <div class="grid small">
          {around?.items.map(({ similarity, sample }) => (
            <Card key={sample.image_id} sample={sample} note={similarity.toFixed(3)} />
          ))}
        </div>
      </Row>
      {mates && (
        <Row title={`Cluster ${mates.cluster}: ${number(mates.selected)} of ${number(mates.size)} chosen`}>
          <p>
            <a href={address("gallery", { cluster: mates.cluster, sort: "dual_rank" })}>All of the cluster</a>
          </p>
          <div class="grid small">
            {mates.members.slice(0, 12).map((sample: Sample) => (
              <Card key={sample.image_id} sample={sample} note={`${sample.cluster_rank}.`} />
            ))}
          </div>
        </Row>
      )}
    </article>
  );
}

export function Clusters() {
  const answer = useAnswer<{ items: Cluster[]; total: number }>(
    coreset.value ? `v1/clusters${query({ coreset: coreset.value, sort: "-size", limit: 200 })}` : null);
  return (
    <section aria-labelledby="clusters-title">
      <h1 id="clusters-title">Clusters</h1>
      <p class="quiet-text" role="status">
        {answer ? `${number(answer.total)} clusters, largest first` : "looking …"}
      </p>
      <ul class="grid clusters">
        {answer?.items.map((item) => (
          <li key={item.cluster} class="card">
            <a href={address("gallery", { cluster: item.cluster, sort: "dual_rank" })}>
              <Picture id={item.typical} size={160} alt={`most typical image of cluster ${item.cluster}`} />
              <span class="caption"><strong>{item.cluster}</strong> {number(item.selected)} of {number(item.size)} chosen</span>
            </a>
            <span class="caption quiet-text">{item.organs.map((o) => name(o.value)).join(", ")}</span>
            <button type="button" onClick={() => openPin({ action: "ban", cluster: { coreset: coreset.value, cluster: item.cluster } })}>
              Ban cluster {item.cluster}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
