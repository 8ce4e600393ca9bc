/**
 * The data of the registry, as this page knows it: listed once, then kept current by the event stream. Changes reach the
 * views at most four times a second.
 */

import { all, follow, pages, request } from "./api.js";
import { released } from "./dom.js";
import { serverNow, setServerTime } from "./time.js";

const INTERVAL = 250;
const HOUR = 3_600_000;
export const KEPT_EVENTS = 5000;
// So many services' last heartbeats may be asked for in a request.
const MOST_SEEN = 60;

export class Model {
  constructor(session) {
    this.session = session;
    this.services = new Map();
    this.expired = new Map();
    this.states = new Map();
    this.values = new Map();
    this.locks = new Map();
    this.events = [];
    this.extensions = new Set(session.extensions);
    this.isLoaded = false;
    this.hasEvents = false;
    this._isCurrent = false;
    this._isStreaming = false;
    this.staleSince = null;
    this.problem = "";
    /** The state of the data that the views show. It follows the fields above when the views are updated. */
    this.shown = { isLoaded: false, staleSince: null, problem: "" };
    this._waiting = [];
    this._dirty = new Set();
    this._listeners = new Set();
    this._timer = null;
    this._flushed = 0;
    this._ids = new Set();
    this._loads = 0;
    this._isLoading = false;
    this._ended = new AbortController();
  }

  /** Have a function called with the set of what has changed: services, events, values, locks, live. */
  onChange(listener) {
    this._listeners.add(listener);
  }

  has(extension) {
    return this.extensions.has(extension);
  }

  /** The prefixes of what the user may write of a kind: services, configuration or locks. An empty prefix matches all. */
  writable(kind) {
    const { role, limits } = this.session;
    if (role !== "write") return [];
    // A user who has prefixes of one kind may not write the kinds without prefixes.
    return Object.values(limits).some((prefixes) => prefixes.length) ? limits[kind] : [""];
  }

  /** Whether the session's user may write this. */
  mayWrite(kind, id) {
    if (kind !== "configuration") return this.writable(kind).some((prefix) => id.startsWith(prefix));
    return this.writable(kind).some((prefix) => !prefix || `${id}/`.startsWith(`${prefix.replace(/\/$/, "")}/`));
  }

  start() {
    follow((type, data, id) => this._handle(type, data, id), (...state) => this._live(...state), this._ended.signal);
  }

  stop() {
    this._ended.abort();
    clearTimeout(this._timer);
    this._listeners.clear();
  }

  _live(isStreaming, problem = "", idle = 0) {
    this._isStreaming = isStreaming;
    if (isStreaming) {
      this.refreshTimes([]).catch(() => null);
      if (!this._isCurrent && !this._isLoading) this._load();
    }
    this._updateStale(problem, idle);
  }

  /** Whether what is shown is current, or since when it is not; a *problem* is the reason. */
  _updateStale(problem, idle = 0) {
    if (this._isStreaming && this._isCurrent) this.staleSince = null;
    else if (problem || this.isLoaded) this.staleSince ??= performance.now() - idle;
    this.problem = problem;
    this._mark("live");
  }

  _handle(type, data, id) {
    if (type === "ping") return;
    if (type === "reset") {
      this._isCurrent = false;
      this._waiting = [];
      this._updateStale("");
      this._load();
      return;
    }
    this._waiting.push(data.id ? data : { ...data, id });
    this._schedule();
  }

  /** List everything; what the stream brings meanwhile is applied afterwards. */
  async _load() {
    const load = (this._loads += 1);
    const isLatest = () => this._loads === load && !this._ended.signal.aborted;
    this._isLoading = true;
    try {
      const [services, states, values, locks] = await Promise.all([
        all("/services"),
        this.has("service-state") ? all("/states") : [],
        all(this.has("etag") ? "/configuration?etags=true" : "/configuration"),
        this.has("locks") ? all("/locks") : [],
        this.refreshTimes([]),
      ]);
      if (!isLatest()) return;
      this.services = new Map(services.map((service) => [service.id, service]));
      this.states = new Map(states.map((state) => [state.id, state]));
      this.values = new Map(values.map((value) => [value.id, value]));
      this.locks = new Map(locks.map((lock) => [lock.name, lock]));
      this.events = [];
      this._ids.clear();
      this.expired.clear();
      this.hasEvents = false;
      this.isLoaded = this._isCurrent = true;
      this._isLoading = false;
      this._updateStale("");
      this._mark("services", "events", "values", "locks");
      await this._loadEvents(isLatest);
    } catch (error) {
      if (!isLatest()) return;
      this._isLoading = this._isCurrent = false;
      this._updateStale(error.message);
      if (error.status !== 401) setTimeout(() => { if (isLatest()) this._load(); }, 2000);
    }
  }

  /** List the events of the last hour. The rest is shown before, because there may be millions. */
  async _loadEvents(isLatest) {
    let listed = [];
    for await (const page of pages(this.has("event-types") ? "/events?types=all" : "/events")) {
      if (!isLatest()) return;
      for (const event of page) this._rememberExpiration(event);
      listed = [...listed, ...page].slice(-KEPT_EVENTS);
    }
    const ids = new Set(listed.map((event) => event.id));
    const since = this.events.filter((event) => !ids.has(event.id));
    for (const event of since) this._rememberExpiration(event);
    this.events = [...listed, ...since].slice(-KEPT_EVENTS);
    this._ids = new Set(this.events.map((event) => event.id));
    this.hasEvents = true;
    this._mark("services", "events");
  }

  _mark(...kinds) {
    for (const kind of kinds) this._dirty.add(kind);
    this._schedule();
  }

  _schedule() {
    if (this._timer !== null) return;
    const wait = Math.max(0, this._flushed + INTERVAL - performance.now());
    this._timer = setTimeout(() => this._flush(), wait);
  }

  async _flush() {
    await released();
    if (this._ended.signal.aborted) return;
    this._timer = null;
    this._flushed = performance.now();
    if (!this._isLoading) {
      for (const event of this._waiting.splice(0)) this._apply(event);
    }
    const { isLoaded, staleSince, problem } = this;
    this.shown = { isLoaded, staleSince, problem };
    const dirty = this._dirty;
    this._dirty = new Set();
    if (dirty.size) for (const listener of [...this._listeners]) listener(dirty);
  }

  _apply(event) {
    // An event from the time of the listing may be among the events, but not yet in the other lists: apply it again.
    if (!this._ids.has(event.id)) {
      this._ids.add(event.id);
      this.events.push(event);
      if (this.events.length > KEPT_EVENTS) this._ids.delete(this.events.shift().id);
      this._dirty.add("events");
    }
    const { type, payload } = event;
    if (type === "service.join") {
      this.services.set(payload.id, { last_seen: null, ...payload, joined: event.timestamp });
      this.expired.delete(payload.id);
    } else if (type === "service.update") {
      const { changed, old_tags, ...service } = payload.service ?? payload;
      this.services.set(service.id, { ...this.services.get(service.id), ...service });
    } else if (type === "service.remove" || type === "service.timeout") {
      this.services.delete(payload.id);
      this._rememberExpiration(event);
    } else if (type === "service.state") {
      if (payload.state === "up" && !payload.reason) this.states.delete(payload.id);
      else this.states.set(payload.id, payload);
    } else if (type === "configuration_value.update") {
      this.values.set(payload.configuration_value_id, {
        id: payload.configuration_value_id, value: payload.new_value, changed: event.timestamp,
      });
    } else if (type === "configuration_value.remove") {
      this.values.delete(payload.configuration_value_id);
    } else if (type === "lock.acquire") {
      this.locks.set(payload.name, { acquired_at: event.timestamp, ...payload });
    } else if (type === "lock.release" || type === "lock.expire") {
      this.locks.delete(payload.name);
    }
    this._dirty.add(type.startsWith("service") ? "services" : type.startsWith("lock") ? "locks" : "values");
  }

  _rememberExpiration(event) {
    if (event.type === "service.join" || event.type === "service.remove") this.expired.delete(event.payload.id);
    if (event.type === "service.timeout") {
      this.expired.set(event.payload.id, { ...event.payload, expiredAt: event.timestamp });
    }
  }

  /** Forget expirations that are older than an hour; whether there were any. */
  dropOldExpirations() {
    const before = this.expired.size;
    for (const [id, service] of this.expired) {
      if (service.expiredAt < serverNow() - HOUR) this.expired.delete(id);
    }
    if (this.expired.size !== before) this._mark("services");
  }

  /** The state of a service: {state, reason, expires_at}. */
  stateOf(id) {
    return this.states.get(id) ?? { state: "up", reason: "", expires_at: null };
  }

  /** Ask when the last heartbeats of these services arrived, and what time it is. */
  async refreshTimes(ids) {
    const answer = await request("POST", "/heartbeats-seen", { body: { ids: ids.slice(0, MOST_SEEN) } });
    setServerTime(answer.now);
    for (const [id, seen] of Object.entries(answer.seen)) {
      const service = this.services.get(id);
      if (service && seen !== null) service.last_seen = seen;
    }
    if (ids.length > MOST_SEEN) await this.refreshTimes(ids.slice(MOST_SEEN));
  }
}

/** The address in a service's metadata, under the keys that the session names; or "". */
export function addressOf(service, keys) {
  const { metadata } = service;
  const [host, port] = [keys.host, keys.port].map(
    (names) => names.map((name) => metadata[name]?.trim()).find(Boolean) ?? "");
  if (!host) return "";
  return port ? (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`) : host;
}

/** The weight of a service, 0 to 1000; 100 by default. */
export function weightOf(service) {
  const weight = service.metadata.weight;
  return /^\d{1,4}$/.test(weight ?? "") && Number(weight) <= 1000 ? Number(weight) : 100;
}
