// Withdrawing images: what would go is shown first, then it is confirmed, followed, and its receipt kept.
import { useEffect, useState } from "preact/hooks";
import { read, routes, type WithdrawalList, type WithdrawalReceipt } from "./api";
import { message, number, refresh, route, say } from "./state";

type Kind = WithdrawalReceipt["kind"];
const KINDS: [Kind, string, string][] = [
  ["image", "One image", "Its image_id; exact copies of it go too."],
  ["group", "A group", "The group_id in the pool: a patient, a study or a clip."],
  ["patient", "A patient", "The id in the files. The service needs the pool's key: serve it with --key-file."],
];
const SEEN = { yes: "has seen it", perhaps: "may have seen it" };

function Rows({ title, rows }: { title: string; rows: [string, string][] }) {
  return rows.length === 0 ? null : (
    <div class="scroll" tabIndex={0} role="region" aria-label={title}>
      <table>
        <caption>{title}</caption>
        <tbody>{rows.map(([what, how]) => <tr key={what}><th scope="row">{what}</th><td>{how}</td></tr>)}</tbody>
      </table>
    </div>
  );
}

function Receipt({ receipt }: { receipt: WithdrawalReceipt }) {
  const { counts } = receipt;
  const goes = receipt.finished ? "Removed" : "Would go";
  return (
    <>
      <p>
        {goes}: {number(counts.images)} {counts.images === 1 ? "image" : "images"}
        {counts.exact_copies > 0 && `, ${number(counts.exact_copies)} of them exact copies under other ids`}
        , {number(counts.in_quarantine)} in quarantine.
      </p>
      <Rows title="Tables" rows={[
        ...Object.entries(receipt.rows).map(([place, rows]): [string, string] => [place, `${number(rows)} rows`]),
        ...Object.entries(receipt.mended).map(([place, rows]): [string, string] => [`${place} (names only)`, `${number(rows)} rows`]),
      ]} />
      <Rows title="Files" rows={receipt.files.map((one) => [`${one.place}: ${one.what}`, `${number(one.files)} ${one.how}`])} />
      <Rows title="Coresets" rows={receipt.coresets.map((one) => [
        one.name, `${number(one.chosen)} chosen images go, ${number(one.left)} of ${number(one.budget)} are left`,
      ])} />
      <Rows title="Has seen it" rows={[
        ...[...Object.entries(receipt.runs), ...Object.entries(receipt.reports)]
          .map(([place, seen]): [string, string] => [place, SEEN[seen]]),
        ...receipt.exports.map((one): [string, string] => [
          `${one.to} (${one.form} of ${one.coreset}, ${one.at.slice(0, 10)})`, `${SEEN[one.seen]}: delete it there`,
        ]),
      ]} />
      <h3>Not reached</h3>
      <ul>{receipt.not_reached.map((text) => <li key={text}>{text}</li>)}</ul>
    </>
  );
}

/** The form, and what it would withdraw; confirmed, it starts. */
function Ask({ onStart }: { onStart: () => void }) {
  const given = route.value.values;
  const first = KINDS.find(([kind]) => given.get(kind)) ?? KINDS[0]!;
  const [kind, setKind] = useState<Kind>(first[0]);
  const [value, setValue] = useState(given.get(first[0]) ?? "");
  const [issuer, setIssuer] = useState("");
  const [reason, setReason] = useState("");
  const [shown, setShown] = useState<WithdrawalReceipt | null>(null);
  const [agreed, setAgreed] = useState(false);
  const asked = { kind, value, issuer: kind === "patient" ? issuer : "", reason };
  const change = (set: (text: string) => void) => (event: Event) => {
    set((event.currentTarget as HTMLInputElement).value);
    setShown(null);
    setAgreed(false);
  };
  const look = async (event: Event) => {
    event.preventDefault();
    try {
      message.value = "";
      setShown(await routes.previewWithdrawal(asked));
    } catch (error) {
      say(error);
    }
  };
  const start = async (event: Event) => {
    event.preventDefault();
    if (!shown) return;
    try {
      const { images, in_quarantine } = shown.counts;
      await routes.withdraw({ ...asked, images, in_quarantine });
      setShown(null);
      setAgreed(false);
      setValue("");
      setIssuer("");
    } catch (error) {
      say(error);
    }
    onStart();
  };
  return (
    <>
      <form onSubmit={look} class="pick" autocomplete="off">
        <fieldset class="choices">
          <legend>What</legend>
          {KINDS.map(([option, title, words]) => (
            <label key={option}>
              <input type="radio" name="kind" value={option} checked={option === kind}
                onChange={change((text) => setKind(text as Kind))} />
              <span><strong>{title}</strong> <small>{words}</small></span>
            </label>
          ))}
        </fieldset>
        <div class="field"><label>id <input required maxLength={1000} value={value} autocomplete="off" onInput={change(setValue)} /></label></div>
        {kind === "patient" && (
          <div class="field"><label>issuer of the id <input maxLength={200} value={issuer} autocomplete="off" onInput={change(setIssuer)} /></label></div>
        )}
        <div class="field">
          <label>reason <input required maxLength={1000} value={reason} aria-describedby="about-reason" onInput={change(setReason)} /></label>
          <small id="about-reason">The receipt keeps it. It must not name anybody.</small>
        </div>
        <button type="submit" class="main">Show what would go</button>
      </form>
      {shown && (
        <form onSubmit={start} aria-labelledby="shown-title" class="receipt">
          <h2 id="shown-title">What would go</h2>
          <Receipt receipt={shown} />
          <label class="agree">
            <input type="checkbox" required checked={agreed} onChange={(event) => setAgreed(event.currentTarget.checked)} />{" "}
            This cannot be undone, and the images cannot be ingested again.
          </label>
          <button type="submit" class="main">
            Withdraw {number(shown.counts.images)} {shown.counts.images === 1 ? "image" : "images"}
          </button>
        </form>
      )}
    </>
  );
}

export function Withdraw() {
  const [known, setKnown] = useState<WithdrawalList | null>(null);
  const load = () => read(routes.withdrawals()).then(setKnown).catch(say);
  const current = known?.current;
  const going = current?.state === "running";
  useEffect(() => {
    void load();
  }, []);
  useEffect(() => {
    if (!going) return undefined;
    const timer = setInterval(() => void load(), 1000);
    return () => {
      clearInterval(timer);
      void refresh();
    };
  }, [going]);
  const finish = () => routes.finishWithdrawal(undefined).then(load).catch(say);
  return (
    <section aria-labelledby="withdraw-title">
      <h1 id="withdraw-title">Withdraw images</h1>
      <p class="quiet-text">
        Rows, pixels and all that was derived from them go, from the whole store. A later ingest does not bring them back.
      </p>
      <div role="status">
        {going && (
          <p>Withdrawing: {current.stage}{" "}
            <progress max={1} value={current.fraction} aria-label="Progress of the withdrawal" /></p>
        )}
        {current?.state === "done" && <p>Withdrawn. The receipt is {current.message}.</p>}
        {(current?.state === "failed" || current?.state === "interrupted") && <p class="note ban">{current.message}</p>}
      </div>
      {current?.state === "interrupted"
        ? <button type="button" class="main" onClick={() => void finish()}>Finish it</button>
        : known && !going && <Ask onStart={() => void load()} />}
      {known && known.items.length > 0 && <h2>Receipts</h2>}
      {known?.items.map((receipt) => (
        <details key={receipt.number}>
          <summary>{receipt.number}, {receipt.at.slice(0, 16).replace("T", " ")} UTC: {number(receipt.counts.images)} images. {receipt.reason}</summary>
          <Receipt receipt={receipt} />
        </details>
      ))}
    </section>
  );
}
