/** An event in words. */

import { h } from "./dom.js";

const WORDS = {
  "service.join": ["registered", "join"], "service.remove": ["deregistered", "remove"],
  "service.timeout": ["expired", "timeout"], "service.update": ["updated", "update"],
  "service.state": ["state", "state"], "configuration_value.update": ["set", "update"],
  "configuration_value.remove": ["removed", "remove"], "lock.acquire": ["acquired", "join"],
  "lock.release": ["released", "remove"], "lock.expire": ["expired", "timeout"],
};

/** The object of an event: {kind: services|configuration|locks, id}. */
export function objectOf(event) {
  const { payload, type } = event;
  if (type.startsWith("configuration")) return { kind: "configuration", id: payload.configuration_value_id };
  if (type.startsWith("lock")) return { kind: "locks", id: payload.name };
  return { kind: "services", id: payload.service?.id ?? payload.id };
}

/** {word, kind, short, long}: one word, its colour, and elements that say what happened. */
export function describe(event) {
  const { type, payload } = event;
  const [word, kind] = WORDS[type] ?? [type, "update"];
  let rest = "";
  if (type === "service.timeout") rest = `no heartbeat for ${payload.heartbeat_timeout} s`;
  else if (type === "service.update") rest = (payload.changed ?? []).join(", ");
  else if (type === "service.state") rest = `${payload.old_state ?? "up"} → ${payload.state}${payload.reason ? `: ${payload.reason}` : ""}`;
  else if (type === "configuration_value.update") rest = `${shorten(payload.old_value)} → ${shorten(payload.new_value)}`;
  else if (type === "configuration_value.remove") rest = `was ${shorten(payload.old_value)}`;
  else if (type === "service.join") rest = [...payload.tags].join(", ");
  else if (type.startsWith("lock")) rest = [payload.holder, payload.fence && `fence ${payload.fence}`].filter(Boolean).join(", ");
  const says = rest ? [h(`span.word.${kind}`, {}, word), " ", h("bdi", {}, rest)] : [h(`span.word.${kind}`, {}, word)];
  return { word, kind, rest, short: says };
}

function shorten(whole) {
  if (whole === null || whole === undefined) return "nothing";
  const value = whole.replaceAll("\n", " ⏎ ");
  return value.length > 60 ? `“${value.slice(0, 57)}…”` : `“${value}”`;
}
