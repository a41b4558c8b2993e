// One image: its picture, why it is selected or not, its neighbours and its cluster; and all clusters.
import { type ImageDetails, routes } from "./api";
import { useAnswer, useKeys } from "./hooks";
import { openPin, removePin } from "./pins";
import { address, coreset, figure, name, number } from "./state";
import { Card, Thumbnail } from "./thumbnail";

/** Whether the image is in the coreset, and its ranks. */
function Verdict({ detail }: { detail: ImageDetails }) {
  const row = detail.coreset;
  if (!row) return <p class="verdict">{detail.why.text.split("\n")[0]}</p>;
  const next = detail.why.values.next_not_chosen;
  const last = detail.why.values.last_chosen;
  return (
    <div class={`verdict ${row.selected ? "selected" : ""}`}>
      <p><strong>{row.selected ? "In the coreset" : "Not in the coreset"} “{row.name}”.</strong> Reason: {row.reason}.</p>
      <dl class="facts">
        <div><dt>rank in its cluster</dt><dd>{number(row.cluster_rank)} of {number(row.cluster_size)}</dd></div>
        <div><dt>quota of the cluster</dt><dd>{number(row.quota)}</dd></div>
        <div><dt>distance rank (1 is nearest)</dt><dd>{number(row.distance_rank)}</dd></div>
        <div><dt>gradient rank (1 is largest)</dt><dd>{number(row.gradient_rank)}</dd></div>
        <div><dt>dual rank</dt><dd>{figure(row.dual_rank)}</dd></div>
        {last && <div><dt>last selected</dt><dd><a href={address(`image/${last.image_id}`)}>{figure(last.dual_rank)}</a></dd></div>}
        {next && <div><dt>next not selected</dt><dd><a href={address(`image/${next.image_id}`)}>{figure(next.dual_rank)}</a></dd></div>}
      </dl>
    </div>
  );
}

function Row({ title, children }: { title: string; children: preact.ComponentChildren }) {
  return <section><h2>{title}</h2>{children}</section>;
}

export function ImageView({ id }: { id: string }) {
  const detail = useAnswer(routes.image({ image_id: id, coreset: coreset.value }));
  const around = useAnswer(
    detail?.scores ? routes.neighbours({ image_id: id, coreset: coreset.value, k: 12 }) : null);
  const clusterNumber = detail?.coreset?.cluster;
  const cluster = useAnswer(clusterNumber === undefined
    ? null : routes.cluster({ cluster: clusterNumber, coreset: coreset.value }));
  const choose = (action: "pin" | "ban") => detail?.image && openPin({ action, images: [id] });
  useKeys((event) => {
    if (event.key === "p") choose("pin");
    if (event.key === "b") choose("ban");
  });
  if (!detail) return <p role="status">Loading …</p>;
  const { image, scores } = detail;
  if (!image) return <p class="verdict">{detail.why.text}</p>;
  const text = `${name(image.organ)}, ${image.source}`;
  return (
    <article class="image">
      <div class="image-head">
        <Thumbnail id={image.image_id} size={512} alt={text} />
        <div>
          <h1>{image.source}</h1>
          <p class="id">{image.image_id}</p>
          <Verdict detail={detail} />
          {detail.pins.map((pin) => (
            <p class={`note ${pin.action}`}>
              {pin.action === "pin" ? "Pinned" : "Banned"} by {pin.author}: {pin.reason}{" "}
              <button type="button" onClick={() => removePin(pin)}>Remove</button>
            </p>
          ))}
          <div class="bar">
            <button type="button" onClick={() => choose("pin")}>Pin <kbd>p</kbd></button>
            <button type="button" onClick={() => choose("ban")}>Ban <kbd>b</kbd></button>
            <a href={address("withdraw", { image: id })}>Withdraw …</a>
          </div>
          <details>
            <summary>Full explanation</summary>
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
      {cluster && (
        <Row title={`Cluster ${cluster.cluster}: ${number(cluster.selected)} of ${number(cluster.size)} selected`}>
          <p>
            <a href={address("gallery", { cluster: cluster.cluster, sort: "dual_rank" })}>All images of the cluster</a>
          </p>
          <div class="grid small">
            {cluster.members.slice(0, 12).map((sample) => (
              <Card key={sample.image_id} sample={sample} note={`rank ${sample.cluster_rank}`} />
            ))}
          </div>
        </Row>
      )}
    </article>
  );
}

export function Clusters() {
  const answer = useAnswer(
    coreset.value ? routes.clusters({ coreset: coreset.value, sort: "-size", limit: 200 }) : null);
  return (
    <section aria-labelledby="clusters-title">
      <h1 id="clusters-title">Clusters</h1>
      <p class="quiet-text" role="status">
        {answer ? `${number(answer.total)} clusters, largest first` : "Loading …"}
      </p>
      <ul class="grid clusters">
        {answer?.items.map((item) => (
          <li key={item.cluster} class="card">
            <a href={address("gallery", { cluster: item.cluster, sort: "dual_rank" })}>
              <Thumbnail id={item.typical} size={160} alt={`most typical image of cluster ${item.cluster}`} />
              <span class="caption"><strong>{item.cluster}</strong> {number(item.selected)} of {number(item.size)} selected</span>
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
