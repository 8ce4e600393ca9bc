/** Requests of this page: its session, the API as the session's user, and the event stream. */

import { sleep } from "./time.js";
import { claim, onTurns, release, takesTurns } from "./turns.js";

const BASE = "/console/api";
const SECRET = "registry-console-secret";
const IDLE_TIMEOUT = 35_000;
const TIMEOUT = 60_000;
// Of windows that take turns: how long a stream lasts, and how long they wait for the next.
const TURN = 500;
const PAUSE = 5000;

/** A response other than a success, or none at all (status 0). */
class ApiError extends Error {
  constructor(status, body) {
    const message = body?.message ?? `The registry does not answer: HTTP ${status} from a proxy`;
    const details = body?.details && body.details !== message ? `: ${body.details}` : "";
    super(status ? `${message}${details}`.replace(".: ", ": ") : "The registry does not answer");
    this.status = status;
    this.body = body;
  }
}

const listeners = new Set();
// The session of this page. Tabs share the storage and the cookie: another one may have begun a session of another user.
let secret = localStorage.getItem(SECRET);

/** Have a function called when the session has ended. */
export function onSignedOut(listener) {
  listeners.add(listener);
}

window.addEventListener("storage", (event) => {
  if ((event.key === SECRET || event.key === null) && localStorage.getItem(SECRET) !== secret) leave();
});

/** Another tab has ended the session, or begun another one: go on with what there is now. */
function leave() {
  end();
  if (localStorage.getItem(SECRET) !== null) location.reload();
}

function end() {
  secret = null;
  for (const listener of listeners) listener();
}

function headers(more = {}) {
  return { ...(secret ? { "X-Console-Secret": secret } : {}), ...more };
}

async function send(method, path, { body, ...options } = {}) {
  const sender = secret;
  const given = headers(options.headers);
  if (body !== undefined) given["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(BASE + path, {
      method, headers: given, signal: options.signal ?? AbortSignal.timeout(TIMEOUT), cache: "no-store", credentials: "same-origin",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  // A response to the last session is not for the user of the next one, and its refusal must not end that session.
  if (!options.isLogin && secret !== sender) throw new ApiError(401, { message: "The session has ended" });
  if (response.ok) return response;
  const fault = await response.json().catch(() => null);
  if (response.status === 401 && !options.isLogin) signOutHere();
  throw new ApiError(response.status, fault);
}

/** The JSON of a response. A response that ends early, or is not from the registry, is an ApiError. */
function read(response) {
  return response.json().catch(() => { throw new ApiError(0); });
}

/** Send a request; the response's JSON, or null. */
export async function request(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : read(response);
}

/** GET with the response's headers. */
export async function getWithHeaders(path) {
  const response = await send("GET", path);
  return { body: await read(response), headers: response.headers };
}

/** All values of a collection, page by page. */
export async function* pages(path, limit = 1000) {
  let marker = null;
  do {
    const next = marker === null ? "" : `&marker=${encodeURIComponent(marker)}`;
    const page = await request("GET", `${path}${path.includes("?") ? "&" : "?"}limit=${limit}${next}`);
    yield page.values;
    marker = page.metadata.next_marker;
  } while (marker !== null);
}

export async function all(path) {
  const values = [];
  for await (const page of pages(path)) values.push(...page);
  return values;
}

function signOutHere() {
  // Requests of a tab whose session another tab has replaced are refused; the new session is not theirs to end.
  if (localStorage.getItem(SECRET) !== secret) {
    leave();
    return;
  }
  localStorage.removeItem(SECRET);
  end();
}

/** Begin a session, with {user, key} or {once}; what the session is. */
export async function signIn(credentials) {
  const session = await request("POST", "/login", { body: credentials, isLogin: true });
  secret = session.secret;
  localStorage.setItem(SECRET, secret);
  return session;
}

/** End the session. */
export async function signOut() {
  await request("POST", "/logout", { body: {} }).catch(() => null);
  signOutHere();
}

export function hasSession() {
  return secret !== null;
}

function whenVisible() {
  if (!document.hidden) return null;
  release();
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      claim();
      resolve();
    };
    document.addEventListener("visibilitychange", look);
  });
}

/** Wait for this window's next turn. */
function nextTurn() {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      forget();
      resolve();
    };
    const timer = setTimeout(end, PAUSE);
    const forget = onTurns(() => { if (!takesTurns()) end(); });
  });
}

/**
 * Follow the event stream until the signal aborts, and across reconnects. A page that is not to be seen has no stream, and
 * one that takes turns has it for moments. *handle* gets type, data and id of each event; *state* gets true when the stream
 * has begun, and false, with the reason and for how many milliseconds it was silent, when it has ended otherwise.
 */
export async function follow(handle, state, signal) {
  let last = "";
  let delay = 500;
  window.addEventListener("focus", claim, { signal });
  window.addEventListener("pagehide", release, { signal });
  signal.addEventListener("abort", release);
  // A tab that is opened in the background would end another window's stream for a moment.
  if (!document.hidden) claim();
  for (;;) {
    await whenVisible();
    if (signal.aborted) return;
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    const hide = () => { if (document.hidden) abort(); };
    signal.addEventListener("abort", abort);
    document.addEventListener("visibilitychange", hide);
    let watch = setTimeout(abort, IDLE_TIMEOUT);
    const isShort = takesTurns();
    let isOver = false;
    const endTurn = () => { isOver = true; abort(); };
    const forget = onTurns(() => { if (!isShort && takesTurns()) endTurn(); });
    let turn = null;
    try {
      const response = await send("GET", "/events/stream?types=all", {
        signal: attempt.signal, headers: last ? { "Last-Event-ID": last } : {},
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(watch);
        watch = setTimeout(abort, IDLE_TIMEOUT);
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const event = parse(block);
          if (event.type === null) continue;
          if (event.type === "ping" || event.type === "reset") { state(true); delay = 500; }
          if (isShort) turn ??= setTimeout(endTurn, TURN);
          handle(event.type, event.data, event.id);
          if (event.id) last = event.id;
        }
      }
      state(false, "The event stream ended");
    } catch (error) {
      if (signal.aborted) return;
      if (isOver) { /* another one begins */ }
      else if (error instanceof ApiError) state(false, error.message);
      else if (error.name !== "AbortError") state(false, "The event stream ended");
      else if (document.hidden) state(false, "The page was hidden");
      else state(false, "The event stream is silent", IDLE_TIMEOUT);
      if (error.status === 401) return;
    } finally {
      clearTimeout(watch);
      clearTimeout(turn);
      forget();
      signal.removeEventListener("abort", abort);
      document.removeEventListener("visibilitychange", hide);
    }
    if (isOver) {
      if (takesTurns()) await nextTurn();
      continue;
    }
    await sleep(delay * (0.75 + Math.random() / 2));
    delay = Math.min(delay * 2, 5000);
  }
}

function parse(block) {
  const event = { type: null, data: null, id: "" };
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") event.type = value;
    else if (field === "id") event.id = value;
    else if (field === "data") data.push(value);
  }
  if (event.type !== null) event.data = JSON.parse(data.join("\n") || "{}");
  return event;
}
