/** The frame of the page: login, views by URL, keyboard, theme, and whether what is shown is current. */

import { hasSession, onSignedOut, request, signIn } from "./api.js";
import { button, dialog, empty, fill, formOf, h, toast } from "./dom.js";
import { Model } from "./model.js";
import { duration } from "./time.js";
import { takesTurns } from "./turns.js";
import { accountView } from "./account.js";
import { clusterView } from "./cluster.js";
import { configurationView, keepDraft, resumeDraft } from "./configuration.js";
import { eventsView } from "./events.js";
import { locksView } from "./locks.js";
import { servicesView } from "./services.js";

const VIEWS = [
  { name: "services", title: "Services", key: "s", make: servicesView },
  { name: "events", title: "Events", key: "e", make: eventsView },
  { name: "configuration", title: "Configuration", key: "c", make: configurationView },
  { name: "locks", title: "Locks", key: "l", make: locksView, extension: "locks" },
  { name: "cluster", title: "Cluster", key: "n", make: clusterView },
  { name: "account", title: "Account", key: "a", make: accountView },
];
const main = document.getElementById("main");
const bar = document.getElementById("bar");
let model = null;
let current = null;

// -- views and URLs

/** The route in the URL: #/view/rest?parameters. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  let decoded = rest.join("/");
  try { decoded = decodeURIComponent(decoded); } catch { /* as it is */ }
  return { name: name || "services", rest: decoded, parameters: new URLSearchParams(query) };
}

/** The URL of a view. */
function url(name, rest = "", parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  const path = rest ? `/${encodeURIComponent(rest).replaceAll("%2F", "/")}` : "";
  return `#/${name}${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

/** Go to a view; *replace* adds nothing to the browser's history. */
function go(target, { replace = false } = {}) {
  if (target === location.hash) return;
  // Unlike an assignment to location.hash, it shows the view before the next key is pressed.
  if (replace) history.replaceState(null, "", target);
  else history.pushState(null, "", target);
  showRoute();
}

function views() {
  return VIEWS.filter((view) => !view.extension || model.has(view.extension));
}

/** Scroll to a link of the navigation: in a narrow window there is no room for all. */
function reveal(link) {
  link.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function showRoute() {
  if (!model) return;
  const wanted = route();
  const view = views().find((each) => each.name === wanted.name) ?? VIEWS[0];
  if (current?.name !== view.name) {
    current?.view.end?.();
    fill(main);
    main.className = view.name;
    current = { name: view.name, view: view.make(main, model, { url, go }) };
    document.title = `${view.title} · Service Registry`;
    for (const link of document.querySelectorAll("#nav a")) {
      const isCurrent = link.dataset.view === view.name;
      if (isCurrent) reveal(link);
      if (isCurrent) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }
  current.view.route(wanted);
}

// -- whether the page is current

function showLive() {
  const live = document.getElementById("live");
  const spoken = document.getElementById("spoken");
  if (!model) return;
  const { isLoaded, staleSince, problem } = model.shown;
  const isStale = staleSince !== null;
  const isShared = isLoaded && takesTurns();
  const [state, kind] = isStale ? ["Not current", "live stale"]
    : isShared ? ["Every 5 s", "live shared"]
    : isLoaded ? ["Live", "live"]
    : ["Loading", "live loading"];
  const text = isStale ? `${state} for ${duration(Math.round((performance.now() - staleSince) / 1000))}` : state;
  if (live.textContent !== text) live.textContent = text;
  // A screen reader reads each change of the state, but not each second.
  if (spoken.textContent !== state) spoken.textContent = state;
  if (live.className !== kind) live.className = kind;
  live.title = isStale ? `${problem || "The event stream is down"}. The page reconnects by itself.`
    : isShared ? "Four other windows of this browser have been used since. Changes appear here every five seconds."
    : "Changes appear as they happen";
  main.classList.toggle("is-stale", isStale);
}

// -- login

function showLogin(message = "") {
  current?.view.end?.();
  current = null;
  bar.hidden = true;
  main.className = "login";
  const user = h("input", { id: "user", name: "username", autocomplete: "username", required: true });
  const key = h("input", { id: "key", name: "password", type: "password", autocomplete: "current-password", required: true });
  const problem = h("p.problem", { role: "alert" }, message);
  const form = formOf(async () => {
    try {
      begin(await signIn({ user: user.value, key: key.value }));
    } catch (error) {
      fill(problem, error.status === 401 ? "The user name or the API key is wrong." : error.message);
      key.focus();
    }
  },
  h("img", { src: "mark.svg", alt: "", width: "40", height: "40" }),
  h("h1", {}, "Service Registry"),
  h("label", { for: "user" }, "User"), user,
  h("label", { for: "key" }, "API key"), key,
  problem, h("button.primary", { type: "submit" }, "Log in"),
  h("p.hint", {}, "On the registry's machine ", h("code", {}, "raxsr console"), " opens this page without a key. The file ",
    h("code", {}, "raxrc"), " there, which the registry names when it starts, has a user and a key. ",
    h("code", {}, "service-registry-users"), " adds users."));
  fill(main, form);
  user.focus();
}

function begin(session) {
  endSession();
  current?.view.end?.();
  model = new Model(session);
  model.onChange((kinds) => current?.view.update?.(kinds));
  model.onChange(() => showLive());
  bar.hidden = false;
  fill(document.getElementById("nav"), views().map((view) =>
    h("a", { href: url(view.name), onfocus: (event) => reveal(event.currentTarget), "data-view": view.name, title: `${view.title} (g ${view.key})` }, view.title)));
  current = null;
  showRoute();
  model.start();
  showLive();
  resumeDraft(session);
}

/** Leave nothing of the session on the page, which may be another user's next; the editor's text is kept for its user. */
function endSession() {
  if (!model) return;
  keepDraft(model.session);
  model.stop();
  model = null;
  for (const box of document.querySelectorAll("dialog")) box.close();
}

onSignedOut(() => {
  if (!model) return;
  endSession();
  showLogin("The session has ended. Log in again.");
});

// -- theme and keyboard

const THEMES = { auto: ["◐", "Theme: as the system"], light: ["☀", "Theme: light"], dark: ["☾", "Theme: dark"] };

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const toggle = document.getElementById("theme");
  [toggle.textContent, toggle.title] = THEMES[theme];
  toggle.setAttribute("aria-label", toggle.title);
  localStorage.setItem("registry-console-theme", theme);
}

const SHORTCUTS = [
  ["/", "filter"], ["↑ ↓ j k", "select a row"], ["Enter", "open the row"], ["Escape", "close, or clear the filter"],
  ...VIEWS.map((view) => [`g ${view.key}`, view.title.toLowerCase()]), ["t", "theme"], ["?", "this list"],
];

function showShortcuts() {
  dialog("Keyboard", (close) => [
    h("table.shortcuts", {}, h("tbody", {}, SHORTCUTS.map(([keys, what]) =>
      h("tr", {}, h("th", { scope: "row" }, keys.split(" ").map((key) => h("kbd", {}, key))), h("td", {}, what))))),
    h("div.actions", {}, button("Close", () => close(), { class: "primary" })),
  ]);
}

/** Give the list the focus, with a row selected. */
function intoList() {
  const table = main.querySelector(".table");
  if (table?.hasAttribute("aria-activedescendant")) table.focus();
  else step(1);
}

/** Select the next row of the list, or the one before. */
function step(direction) {
  const table = main.querySelector(".table");
  if (table) {
    table.focus();
    if (document.activeElement === table) table.dispatchEvent(new KeyboardEvent("keydown", { key: direction > 0 ? "ArrowDown" : "ArrowUp" }));
    return;
  }
  const rows = [...main.querySelectorAll(".keys :is(a, summary)")].filter((row) => row.checkVisibility());
  const next = rows.indexOf(document.activeElement) + direction;
  rows[Math.min(Math.max(next, 0), rows.length - 1)]?.focus();
}

let leader = -Infinity;

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || !model || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (current?.view.escape?.()) event.preventDefault();
    else if (isTyping) event.target.blur();
    return;
  }
  const isDown = ["ArrowDown", "j"].includes(event.key);
  if (isTyping) {
    if (event.target.type !== "search" || !["ArrowDown", "Enter"].includes(event.key)) return;
    event.preventDefault();
    intoList();
    return;
  }
  if ((isDown || ["ArrowUp", "k"].includes(event.key)) && event.target.matches("body, main, #nav a, .keys a, .keys summary")) {
    event.preventDefault();
    step(isDown ? 1 : -1);
    return;
  }
  const view = event.timeStamp - leader < 1500 && views().find((each) => each.key === event.key);
  leader = -Infinity;
  if (view) go(url(view.name));
  else if (event.key === "g") leader = event.timeStamp;
  else if (event.key === "?") showShortcuts();
  else if (event.key === "t") nextTheme();
  else if (event.key === "/") document.querySelector("input[type=search]")?.focus();
  else return;
  event.preventDefault();
});

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length]);
}

// -- start

let link = null;

/** Take the secret of a link out of the address bar; whether there was one. */
function takeLink() {
  const once = /^#once=([\w-]+)$/.exec(location.hash);
  if (!once) return false;
  [, link] = once;
  history.replaceState(null, "", "#/services");
  return true;
}

/** Begin, or go on with, a session, or ask for a user; a registry that does not answer is asked again. */
async function boot() {
  const once = link;
  if (!once && !hasSession()) { showLogin(); return; }
  try {
    const session = await (once ? signIn({ once }) : request("GET", "/session"));
    begin(session);
  } catch (error) {
    if (error.status === 401) {
      link = null;
      if (!model) showLogin(once ? "This link has been used, or is too old. Run raxsr console again." : "The session has ended. Log in again.");
      else if (once) toast("The link has been used, or is too old.", "error");
    } else if (error.status === 0 || error.status === 429 || error.status >= 500) {
      showWaiting(error.message);
      setTimeout(boot, 2000);
    } else {
      showLogin(error.message);
    }
    return;
  }
  link = null;
}

function showWaiting(problem) {
  if (model || main.classList.contains("waiting")) return;
  main.className = "waiting";
  fill(main, empty("The registry is not available", h("p", { role: "alert" }, problem), h("p", {}, "The page tries again by itself.")));
}

const theme = localStorage.getItem("registry-console-theme");
setTheme(Object.hasOwn(THEMES, theme) ? theme : "auto");
document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("help").addEventListener("click", showShortcuts);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", () => (takeLink() ? boot() : showRoute()));
setInterval(() => { showLive(); model?.dropOldExpirations(); current?.view.tick?.(); }, 500);
takeLink();
boot();
