/** One service: what is known of it, its last events, and the actions of an operator. */

import { request } from "./api.js";
import { actions, button, closeButton, copyButton, dialog, fill, formOf, h, identifier, toast } from "./dom.js";
import { describe } from "./event.js";
import { ageElement, showAge } from "./heartbeat.js";
import { KEPT_EVENTS, weightOf } from "./model.js";
import { exactly, moment } from "./time.js";

const TIMES = [["", "Until it is cleared"], ["600", "10 minutes"], ["3600", "1 hour"], ["86400", "1 day"]];
const EFFECTS = {
  drain: "Clients send no new work to it. Existing connections go on.",
  out: "Clients send nothing to it.",
};

/** Fill the panel of a service, unless nothing has changed. */
export function showService(panel, model, id, row, { close, url }) {
  const state = model.stateOf(id);
  const events = model.events.filter((event) => (event.payload.id ?? event.payload.service?.id) === id).slice(-8).reverse();
  const mayWrite = model.has("service-state") && model.mayWrite("services", id);
  const isFull = model.events.length >= KEPT_EVENTS;
  const signature = JSON.stringify([id, isFull, row?.kind, row?.service, state, events[0]?.id, mayWrite, model.isLoaded, model.hasEvents],
    (key, value) => (key === "last_seen" ? undefined : value));
  if (panel.dataset.signature === signature) return;
  panel.dataset.signature = signature;
  const head = h("header", {}, h("h2", {}, identifier(id, "the id")), closeButton(close));
  if (!row) {
    fill(panel, head, h("p.muted", {}, model.isLoaded ? "No service with this id is registered." : "Loading"));
    return;
  }
  const { service } = row;
  const age = row.kind ? null : ageElement();
  fill(panel, head,
    row.kind ? expiredNote(service) : stateNote(state, row),
    mayWrite && !row.kind ? stateButtons(id, state) : null,
    h("dl", {},
      entry("Last heartbeat", age ?? h("span", {}, `missing for ${service.heartbeat_timeout} s`)),
      entry("Timeout", `${service.heartbeat_timeout} s`),
      entry("Address", row.address ? identifier(row.address, "the address") : "–"),
      entry("Weight", String(weightOf(service))),
      entry("Tags", service.tags.length
        ? service.tags.map((tag) => h("a.chip", { href: url("services", "", { tag }) }, h("bdi", {}, tag))) : "–")),
    h("h3", {}, "Metadata"), metadata(service),
    h("h3", {}, "Events"), events.length
      ? h("ol.short-events", {}, events.map((event) => h("li", {},
        h("a", { href: url("events", event.id), title: exactly(event.timestamp) }, moment(event.timestamp)), " ", describe(event).short)))
      : h("p.muted", {}, !model.hasEvents ? "Loading" : isFull ? "None that the page has." : "None in the last hour."),
    isFull && h("p.muted", {}, `The page keeps the newest ${KEPT_EVENTS.toLocaleString("en")} events of all services and values.`));
  if (age) showAge(age, service);
}

function entry(term, value) {
  return [h("dt", {}, term), h("dd", {}, value)];
}

function expiredNote(service) {
  return h("p.note.expired", {}, h("strong", {}, "Expired"), ` at ${moment(service.expiredAt)}: no heartbeat arrived for `
    + `${service.heartbeat_timeout} s. This is its last state.`);
}

function stateNote(state, row) {
  if (state.state === "up") {
    return row.state === "disabled" ? h("p.note", {}, "Disabled by its own metadata (", h("code", {}, "status=disabled"), ").") : null;
  }
  return h(`p.note.${state.state}`, {}, h("strong", {}, state.state === "drain" ? "Draining" : "Out of service"),
    state.reason ? [": ", h("bdi", {}, state.reason)] : null,
    state.expires_at ? ` (until ${moment(state.expires_at)})` : null);
}

function stateButtons(id, state) {
  // One that is disabled otherwise would lose the focus after it was pressed.
  const set = (wanted) => button(wanted === "drain" ? "Drain…" : "Take out…", () => askState(id, wanted),
    { "aria-disabled": state.state === wanted ? "true" : null });
  return h("div.actions.start", {}, set("drain"), set("out"),
    button("Up", () => putState(id, { state: "up" }), { "aria-disabled": state.state === "up" ? "true" : null }));
}

async function putState(id, body) {
  await request("PUT", `/services/${encodeURIComponent(id)}/state`, { body });
  toast(`${id} is ${{ up: "up", drain: "draining", out: "out of service" }[body.state]}`);
}

function askState(id, state) {
  return dialog(state === "drain" ? `Drain ${id}` : `Take ${id} out of service`, (close) => {
    const reason = h("input", { id: "reason", maxlength: "255", autocomplete: "off" });
    const time = h("select", { id: "time" }, TIMES.map(([value, text]) => h("option", { value }, text)));
    return formOf(() => {
      close();
      return putState(id, { state, reason: reason.value, ...(time.value ? { expires_in: Number(time.value) } : {}) });
    },
    h("p", {}, EFFECTS[state]),
    h("label", { for: "reason" }, "Reason"), reason,
    h("label", { for: "time" }, "For"), time,
    actions(close, state === "drain" ? "Drain" : "Take out"));
  });
}

/** The metadata of a service or a lock. */
export function metadata(object) {
  const entries = Object.entries(object.metadata ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  if (!entries.length) return h("p.muted", {}, "None.");
  return h("table.metadata", {}, h("tbody", {}, entries.map(([key, value]) => h("tr", {},
    h("th", { scope: "row" }, h("bdi.mono", {}, key)),
    h("td", {}, h("bdi.mono", {}, value), copyButton(value, `the value of ${key}`))))));
}
