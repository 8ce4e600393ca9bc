/** The configuration: a tree of keys, one value with its history, and edits that never overwrite another's unseen. */

import { all, getWithHeaders, request } from "./api.js";
import { actions, button, closeButton, command, copyButton, dialog, empty, fill, folded, formOf, h, identifier, released, toast, wordsOf } from "./dom.js";
import { diffElement } from "./diff.js";
import { ago, exactly, moment, sleep } from "./time.js";

// Elements are slow to make, and a change of a value makes all of them again. With more values, folders are closed at first.
const MOST_VALUES = 400;
// The registry lists at most this many changes of a value.
const MOST_CHANGES = 100;
const HISTORY_INTERVAL = 1000;
// A value has at most this many.
const MOST_CHARACTERS = 1024;
const DRAFT = "registry-console-draft";
const KEY = /^(?!.*\/$)(?=.{3,500}$)(\/[\w-]{3,50}\/?){0,10}([\w.-]{3,170})?$/;
const KEY_RULE = "Invalid key: the name has 3 to 170 characters, each namespace before it 3 to 50, of a-z A-Z 0-9 _ - (in the name also .), as in /production/web/workers";

/** The path of a key below the API. A key's own slash stays: /configuration//production/x. */
function pathOf(key) {
  // With these a browser asks for another key.
  if (/(^|\/)\.\.?(\/|$)/.test(key)) throw new Error("No part of a key can be . or ..");
  return `/configuration/${key.split("/").map(encodeURIComponent).join("/")}`;
}

export function configurationView(place, model, { url, go }) {
  let parameters = {};
  let open = "";
  let history = null;
  // Whether each folder is open, by its path, since it was shown first.
  const folders = new Map();
  const change = (changes) => go(url("configuration", open, { ...parameters, ...changes }), { replace: true });
  const target = (key) => url("configuration", key, parameters);
  const search = h("input", {
    type: "search", placeholder: "Filter by key or value  ( / )", "aria-label": "Filter", spellcheck: "false",
    oninput: () => change({ q: search.value }),
  });
  const form = h("div.segments", { role: "group", "aria-label": "Form" }, [["", "Tree"], ["flat", "Flat"]].map(([view, title]) =>
    h("button", { type: "button", "data-view": view, onclick: () => change({ view }) }, title)));
  const list = h("section.list.keys", { "aria-label": "Keys" });
  const detail = h("aside.detail", { hidden: true, "aria-label": "Value" });
  const mayAdd = model.writable("configuration").length > 0;
  const add = button("New value…", () => editor("", "", null));
  fill(place, h("div.center", {}, h("div.tools", {}, search, form, mayAdd ? add : null), list), detail);

  function refresh() {
    const { q = "", view = "" } = parameters;
    const words = wordsOf(q);
    const values = [...model.values.values()]
      .filter(({ id, value }) => words.every((word) => folded(`${id} ${value}`).includes(word)))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    for (const segment of form.children) segment.setAttribute("aria-pressed", segment.dataset.view === view);
    if (search.value !== q) search.value = q;
    const signature = JSON.stringify([values.map(({ id, value }) => [id, value]), view, open, q, model.isLoaded]);
    if (list.dataset.signature === signature) return;
    list.dataset.signature = signature;
    if (!values.length) fill(list, nothing(q));
    else if (view === "flat" || q) fill(list, some(values, (items) => h("ul.flat", {}, items.map((value) => h("li", {}, leaf(value, value.id))))));
    else fill(list, h("div.tree", {}, branch(treeOf(values), "", values.length <= MOST_VALUES)));
  }

  /** The element that *make* returns for the first MOST_VALUES items, after a note if there are more. */
  function some(items, make) {
    const note = items.length > MOST_VALUES
      ? h("p.hint", {}, `Only ${MOST_VALUES} of ${items.length.toLocaleString("en")} are listed. Filter for the others.`) : null;
    return [note, make(items.slice(0, MOST_VALUES))];
  }

  function branch(node, path, areOpen) {
    const makers = [
      ...[...node.folders].map(([name, child]) => () => folder(child, name, `${path}/${name}`, areOpen || node.folders.size === 1)),
      ...node.values.map(([name, value]) => () => leaf(value, name)),
    ];
    return some(makers, (items) => h("div.branch", {}, items.map((make) => make())));
  }

  /** A folder. Its content is made only when it is opened, because it may be large. */
  function folder(node, name, path, isOpenAtFirst) {
    let isOpen = folders.get(path) ?? isOpenAtFirst;
    folders.set(path, isOpen);
    const inside = () => branch(node, path, node.count <= MOST_VALUES);
    const element = h("details", {
      open: isOpen,
      ontoggle: () => {
        if (element.open === isOpen) return;
        isOpen = element.open;
        folders.set(path, isOpen);
        if (isOpen && element.childElementCount === 1) element.append(...inside().filter(Boolean));
      },
    }, h("summary", { "data-key": path }, h("bdi.mono", {}, name), h("span.count", {}, String(node.count))), isOpen ? inside() : null);
    return element;
  }

  /** Open the folders that a key is in. */
  function reveal(key) {
    for (let end = key.indexOf("/", 1); end > 0; end = key.indexOf("/", end + 1)) folders.set(key.slice(0, end), true);
  }

  function leaf(value, name) {
    return h("a.leaf", { href: target(value.id), "data-key": value.id, "aria-current": value.id === open ? "true" : null },
      h("bdi.mono.key", {}, name), h("bdi.value", {}, oneLine(value.value)));
  }

  function nothing(q) {
    if (!model.isLoaded) return h("p.loading", {}, "Loading");
    if (q) return empty("No value matches", h("p", {}, `${model.values.size} values exist.`));
    return empty("No configuration yet", h("p", {}, mayAdd ? "Set a first value here, or in a shell:" : "A user who may write sets a first value, here or in a shell:"),
      command("raxsr configuration set /production/web/workers 4"));
  }

  function showDetail() {
    detail.hidden = !open;
    place.classList.toggle("has-detail", Boolean(open));
    const value = model.values.get(open);
    const signature = JSON.stringify([open, value, model.isLoaded]);
    if (!open || detail.dataset.signature === signature) return;
    detail.dataset.signature = signature;
    const head = h("header", {}, h("h2", {}, identifier(open, "the key")), closeButton(view.escape));
    const mayWrite = model.mayWrite("configuration", open);
    if (history?.key !== open) history = historyOf(model, open);
    fill(detail, head,
      value ? h("pre.value", { tabindex: "0" }, value.value.split("\n").map((line) => [line, h("br")]))
        : h("p.muted", {}, model.isLoaded ? "No value has this key." : "Loading"),
      h("div.actions.start", {}, value ? copyButton(value.value, "the value") : null,
        mayWrite && value ? button("Edit…", () => editor(open, value.value)) : null,
        mayWrite && value ? button("Remove…", () => remover(model, open), { class: "danger" }) : null),
      h("h3", {}, "History"), history.element);
    if (model.isLoaded) history.refresh();
  }

  const view = {
    route(wanted) {
      parameters = Object.fromEntries(wanted.parameters);
      if (wanted.rest !== open) reveal(wanted.rest);
      open = wanted.rest;
      refresh();
      showDetail();
    },
    update(kinds) {
      if (kinds.has("values")) { refresh(); showDetail(); }
    },
    escape() {
      const key = open;
      if (open) go(url("configuration", "", parameters));
      else if (parameters.q) go(url("configuration"));
      else return false;
      if (key) [...list.querySelectorAll("a")].find((leaf) => leaf.dataset.key === key)?.focus();
      return true;
    },
  };
  return view;
}

function oneLine(value) {
  const line = value.replaceAll("\n", " ⏎ ");
  return line.length > 120 ? `${line.slice(0, 117)}…` : line;
}

/** Keys by their namespaces: /production/web/workers is "workers" in the folder web in the folder production. */
function treeOf(values) {
  const folder = () => ({ folders: new Map(), values: [], count: 0 });
  const root = folder();
  for (const value of values) {
    const names = value.id.split("/");
    const name = names.length > 2 ? names.pop() : value.id;
    let node = root;
    for (const part of names.length > 1 && name !== value.id ? names.slice(1) : []) {
      if (!node.folders.has(part)) node.folders.set(part, folder());
      node = node.folders.get(part);
      node.count += 1;
    }
    node.values.push([name, value]);
  }
  return root;
}

// -- history

/** The changes of a value: an element, and a function that lists them again. */
function historyOf(model, key) {
  const element = h("div.history", {}, h("p.muted", {}, "Loading"));
  let isWanted = false;
  let isAsking = false;
  let before = 0;
  // The registry looks through the changes of all values, so it is not asked at each change, and seldom if that takes long
  // again and again. A single request may have met a hiccup.
  async function refresh() {
    isWanted = true;
    if (isAsking) return;
    isAsking = true;
    while (isWanted && element.isConnected) {
      isWanted = false;
      const began = performance.now();
      const changes = await all(`/value-history?key=${encodeURIComponent(key)}`).catch((error) => error);
      const took = performance.now() - began;
      const rest = Math.max(HISTORY_INTERVAL, 10 * Math.min(took, before));
      before = took;
      await showHistory(element, model, key, changes);
      await sleep(rest);
    }
    isAsking = false;
  }
  return { key, element, refresh };
}

async function showHistory(place, model, key, changes) {
  await released();
  if (changes instanceof Error) {
    fill(place, h("p.problem", {}, changes.message));
    return;
  }
  if (!changes.length) {
    fill(place, h("p.muted", {}, "No change within the event retention."));
    return;
  }
  const note = changes.length < MOST_CHANGES ? null : h("p.muted", {}, `Only the newest ${MOST_CHANGES} changes are listed.`);
  const now = model.values.get(key)?.value ?? null;
  const mayWrite = model.mayWrite("configuration", key);
  fill(place, note, h("ol.changes", {}, changes.reverse().map((event) => {
    const value = event.payload.new_value ?? null;
    return h("li", {}, h("div.change", {},
      h("time", { datetime: exactly(event.timestamp), title: exactly(event.timestamp) }, `${moment(event.timestamp)} (${ago(event.timestamp)})`),
      mayWrite && value !== null && value !== now
        ? button("Roll back to this…", () => editor(key, value), { "data-key": event.id }) : null),
    diffElement(event.payload.old_value, value));
  })));
}

// -- editing

/** The value and its tag, as the registry has them now; null if there is none. */
async function current(key) {
  try {
    const { body, headers } = await getWithHeaders(pathOf(key));
    return { value: body.value, tag: headers.get("ETag") };
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

function conditionFor(base) {
  if (base === null) return { "If-None-Match": "*" };
  if (!base.tag) {
    throw new Error("Not changed: a proxy removes the ETag header, so other changes could be overwritten. Configure it to pass ETag on");
  }
  return { "If-Match": base.tag };
}

// Functions that return the draft in each open editor.
const drafts = new Set();

/** A session ends: keep what its user is writing. */
export function keepDraft({ user, tenant }) {
  const draft = [...drafts].at(-1);
  try {
    if (draft) sessionStorage.setItem(DRAFT, JSON.stringify({ user, tenant, ...draft() }));
  } catch { /* It is longer than what a browser keeps. */ }
}

/** A session begins: go on with what its user was writing in this tab when the last one ended. */
export function resumeDraft({ user, tenant }) {
  const text = sessionStorage.getItem(DRAFT);
  sessionStorage.removeItem(DRAFT);
  const kept = JSON.parse(text);
  if (kept?.user === user && kept.tenant === tenant) editor(kept.key, kept.text, kept.base, kept.name);
}

/**
 * Edit a value, or set a new one. *proposed* is what the editor begins with, *base* what it replaces, by default what
 * there is, *typed* what the field for the key of a new one begins with.
 */
async function editor(key, proposed, base, typed = key) {
  if (base === undefined) base = await current(key);
  let draft;
  const outcome = await dialog(key ? `Edit ${key}` : "New value", (close) => {
    const name = h("input", { id: "key", value: typed, required: true, autocomplete: "off", spellcheck: "false", placeholder: "/production/web/workers" });
    const text = h("textarea", { id: "text", rows: "8", required: true, spellcheck: "false", value: proposed });
    // It has no carriage returns; a value that is not edited keeps its own.
    const given = text.value;
    const written = () => (text.value === given ? proposed : text.value);
    draft = () => ({ key, name: name.value, text: written(), base });
    drafts.add(draft);
    const problem = h("p.problem", { role: "alert" });
    const preview = h("div.preview");
    const show = () => {
      // A maxlength would cut off the end of a longer text that is pasted.
      const { length } = [...text.value];
      const isLong = length > MOST_CHARACTERS;
      text.setCustomValidity(isLong ? `A value has at most ${MOST_CHARACTERS} characters. These are ${length}.` : "");
      fill(preview, isLong ? null : [h("h3", {}, "Changes"), diffElement(base?.value ?? null, written(), ["the value now", "yours"])]);
    };
    text.addEventListener("input", show);
    show();
    return formOf(async () => {
      // The slash at the beginning is optional: the registry takes app/name for /app/name.
      const wanted = key || name.value.replace(/^(?=[^/]+\/)/, "/");
      const mine = written();
      try {
        if (!key && !KEY.test(wanted)) throw new Error(KEY_RULE);
        const isSaved = await save(wanted, mine, base);
        if (isSaved) toast(`${wanted} is set`);
        else if (!problem.isConnected) throw new Error(`${wanted} is not set: the value has changed meanwhile`);
        close(isSaved ? null : { wanted, mine, theirs: await current(wanted) });
      } catch (error) {
        // After Escape the dialog is no longer there.
        if (!problem.isConnected) throw error;
        fill(problem, error.message);
      }
    },
    key ? null : [h("label", { for: "key" }, "Key"), name],
    h("label", { for: "text" }, "Value"), text, preview, problem, actions(close, "Save"));
  }, "wide");
  if (outcome) await conflict(base, outcome);
  drafts.delete(draft);
}

/** Whether a value could be set or, if it is null, removed, because it is still what it was. */
async function save(key, value, base) {
  const headers = conditionFor(base);
  try {
    await (value === null ? request("DELETE", pathOf(key), { headers }) : request("PUT", pathOf(key), { body: { value }, headers }));
    return true;
  } catch (error) {
    if (error.status !== 412) throw error;
    return false;
  }
}

/** Another editor was first: show both, and let the user decide. */
async function conflict(base, { wanted: key, mine, theirs }) {
  // The key of a new value may already have had one when the editor was opened.
  const isOld = base === null && theirs !== null;
  const [before, now] = isOld ? ["no value", "the value now"] : ["what you began with", "theirs"];
  const choice = await dialog(isOld ? "The key has a value already" : "The value has changed meanwhile", (close) => [
    h("p", {}, h("bdi.mono", {}, key), isOld ? " already has a value. Nothing of yours is saved."
      : " was changed by another editor after you opened it. Nothing of yours is saved."),
    h("h3", {}, isOld ? "Its value" : "Their change"), diffElement(base?.value ?? null, theirs?.value ?? null, [before, now]),
    h("h3", {}, isOld ? "Yours, compared with it" : "Yours, compared with theirs"), diffElement(theirs?.value ?? null, mine, [now, "yours"]),
    h("div.actions", {}, button(isOld ? "Keep it" : "Keep theirs", () => close("theirs")), button("Edit mine again…", () => close("edit"), { class: "primary" })),
  ], "wide");
  if (choice === "edit") await editor(key, mine, theirs);
}

async function remover(model, key) {
  const base = await current(key);
  if (base === null) throw new Error(`${key} has been removed by another editor`);
  await dialog(`Remove ${key}?`, (close) => formOf(async () => {
    close();
    if (!await save(key, null, base)) throw new Error("Not removed: the value has changed meanwhile");
    toast(`${key} is removed`);
  }, diffElement(base.value, null), actions(close, "Remove", "danger")));
}
