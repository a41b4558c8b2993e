// The explorer's frame: header, view of the address, sign-in, messages, keys.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { read, routes, type Sample, setToken, signedIn, takeToken } from "./api";
import { Compare, CoresetView } from "./compare";
import { Gallery } from "./gallery";
import { Holdings } from "./holdings";
import { useKeys } from "./hooks";
import { Clusters, ImageView } from "./image";
import { MapView } from "./map";
import { Pick } from "./pick";
import { PinDialog, Pins } from "./pins";
import { Review } from "./review";
import { address, adjust, coreset, coresets, fragment, go, message, number, pool, refresh, route, say } from "./state";
import { Card } from "./thumbnail";
import { Withdraw } from "./withdraw";
import "./style.css";

const VIEWS: [string, string, string][] = [
  ["map", "Map", "m"], ["gallery", "Gallery", "g"], ["clusters", "Clusters", "c"], ["coreset", "Coreset", "o"],
  ["compare", "Compare", "v"], ["store", "Store", "s"], ["pick", "Pick", "n"], ["pins", "Pins and bans", "h"], ["review", "Review", "w"],
  ["withdraw", "Withdraw", "x"],
];

function SignIn() {
  const [text, setText] = useState("");
  const enter = (event: Event) => {
    event.preventDefault();
    setToken(text);
    void refresh();
  };
  return (
    <main class="sign-in" id="content">
      <h1>echostill</h1>
      <p>This service requires a token. <code>echostill serve</code> printed it at its first start, together with a link that contains it.</p>
      <form onSubmit={enter} class="bar">
        <label>Token <input type="password" required autocomplete="off" value={text}
          onInput={(event) => setText(event.currentTarget.value)} /></label>
        <button type="submit" class="main">Sign in</button>
      </form>
      <Messages />
    </main>
  );
}

function Messages() {
  return (
    <div class="messages" role="alert">
      {message.value && (
        <p>{message.value} <button type="button" aria-label="Close message" onClick={() => (message.value = "")}>×</button></p>
      )}
    </div>
  );
}

function Search() {
  const text = route.value.values.get("q") ?? "";
  const [found, setFound] = useState<Sample[] | null>(null);
  useEffect(() => {
    if (!text) return setFound(null);
    read(routes.find({ q: text, limit: 60, coreset: coreset.value }))
      .then((page) => setFound(page.items)).catch(say);
  }, [text, coreset.value]);
  return (
    <section aria-labelledby="search-title">
      <h1 id="search-title">Images matching “{text}”</h1>
      <p class="quiet-text" role="status">{found ? `${number(found.length)} found` : "Loading …"}</p>
      <div class="grid">{found?.map((sample) => <Card key={sample.image_id} sample={sample} />)}</div>
    </section>
  );
}

function View() {
  const { view, argument } = route.value;
  if (view === "image") return <ImageView key={argument} id={argument} />;
  if (view === "gallery") return <Gallery />;
  if (view === "clusters") return <Clusters />;
  if (view === "coreset") return <CoresetView />;
  if (view === "compare") return <Compare />;
  if (view === "store") return <Holdings />;
  if (view === "pick") return <Pick />;
  if (view === "pins") return <Pins />;
  if (view === "review") return <Review />;
  if (view === "withdraw") return <Withdraw />;
  if (view === "search") return <Search />;
  return <MapView />;
}

function savedTheme(): string {
  return localStorage.getItem("echostill-theme") ?? "system";
}

function Header() {
  const [theme, setTheme] = useState(savedTheme());
  const about = pool.value;
  const { view } = route.value;
  useEffect(() => {
    localStorage.setItem("echostill-theme", theme);
    document.documentElement.dataset.theme = theme;
  }, [theme]);
  const search = (event: Event) => {
    event.preventDefault();
    const field = (event.currentTarget as HTMLFormElement).elements.namedItem("q") as HTMLInputElement;
    if (field.value.trim()) go(address("search", { q: field.value.trim() }));
  };
  return (
    <header>
      <a class="brand" href="#/map">echostill</a>
      <nav aria-label="Views">
        {VIEWS.map(([key, text, letter]) => (
          <a href={address(key)} aria-current={view === key ? "page" : undefined} title={`Shortcut: ${letter}`}>{text}</a>
        ))}
      </nav>
      <form role="search" aria-label="Find an image" onSubmit={search}>
        <input id="find" name="q" type="search" placeholder="id or source (press /)" aria-label="Find an image by id or source" />
      </form>
      <label class="pick-coreset">
        <span class="quiet">Coreset</span>
        <select value={coreset.value} onChange={(event) => adjust({ coreset: event.currentTarget.value })} aria-label="Coreset">
          {coresets.value.map((item) => <option value={item.name}>{item.name}{item.budget !== null && ` (${number(item.budget)})`}</option>)}
        </select>
      </label>
      <label>
        <span class="quiet">Theme</span>
        <select aria-label="Theme" value={theme} onChange={(event) => setTheme(event.currentTarget.value)}>
          <option value="system">System</option><option value="light">Light</option><option value="dark">Dark</option>
        </select>
      </label>
      {about && <p class="about">{about.store}: {number(about.images)} images</p>}
    </header>
  );
}

function App() {
  useKeys((event) => {
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("find")?.focus();
      return;
    }
    const found = VIEWS.find(([, , letter]) => letter === event.key);
    if (found) go(address(found[0]));
  });
  void fragment.value;
  if (!signedIn.value) return <SignIn />;
  return (
    <>
      <a class="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        document.getElementById("content")?.focus();
      }}>Skip to content</a>
      <Header />
      <Messages />
      <main id="content" tabIndex={-1}><View /></main>
      <PinDialog />
    </>
  );
}

takeToken();
document.documentElement.dataset.theme = savedTheme();
if (signedIn.value) void refresh();
render(<App />, document.getElementById("app")!);
