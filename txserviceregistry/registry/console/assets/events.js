/** The event feed: the last hour, and what happens now. */

import { button, closeButton, copyButton, empty, fill, folded, h, wordsOf } from "./dom.js";
import { describe, objectOf } from "./event.js";
import { KEPT_EVENTS } from "./model.js";
import { Table, tableOr } from "./table.js";
import { ago, exactly, moment } from "./time.js";

const KINDS = [["", "All"], ["service", "Services"], ["configuration_value", "Configuration"], ["lock", "Locks"]];
const COLUMNS = [
  { key: "time", title: "Time", cell: (row) => h("time", { datetime: exactly(row.event.timestamp), title: exactly(row.event.timestamp) }, moment(row.event.timestamp)) },
  { key: "what", title: "Event", cell: (row) => h(`span.badge.${row.says.kind}`, {}, row.says.word) },
  { key: "object", title: "Object", cell: (row) => h("bdi.mono", { title: row.object.id }, row.object.id) },
  { key: "details", title: "Details", cell: (row) => h("bdi", { title: row.says.rest }, row.says.rest) },
];

export function eventsView(place, model, { url, go }) {
  let parameters = {};
  let open = "";
  let paused = null;
  const rows = new WeakMap();

  const change = (changes) => go(url("events", open, { ...parameters, ...changes }), { replace: true });
  const search = h("input", {
    type: "search", placeholder: "Filter by object, type or details  ( / )", "aria-label": "Filter", spellcheck: "false",
    oninput: () => change({ q: search.value }),
  });
  const kinds = h("div.segments", { role: "group", "aria-label": "Kind" }, KINDS
    .filter(([kind]) => kind !== "lock" || model.has("locks"))
    .map(([kind, title]) => h("button", { type: "button", "data-kind": kind, onclick: () => change({ kind }) }, title)));
  const pause = button("Pause", () => {
    paused = paused ? null : [...model.events];
    pause.textContent = paused ? "Resume" : "Pause";
    pause.setAttribute("aria-pressed", paused !== null);
    refresh();
  }, { "aria-pressed": "false" });
  const table = new Table("Events", COLUMNS, { open: (row) => go(url("events", row.id, parameters)) });
  const note = h("span.muted", { hidden: true }, `Only the newest ${KEPT_EVENTS.toLocaleString("en")} events are kept. For older ones: raxsr events list`);
  const list = h("section.list", { "aria-label": "Events" });
  const detail = h("aside.detail", { hidden: true, "aria-label": "Event" });
  fill(place, h("div.center", {}, h("div.tools", {}, search, kinds, pause, note), list), detail);

  function rowOf(event) {
    let row = rows.get(event);
    if (!row) {
      const says = describe(event);
      const object = objectOf(event);
      row = { id: event.id, event, says, object, text: folded(`${event.type} ${object.id} ${says.word} ${says.rest}`) };
      rows.set(event, row);
    }
    return row;
  }

  function refresh() {
    const { q = "", kind = "" } = parameters;
    const words = wordsOf(q);
    const shown = [];
    for (const event of paused ?? model.events) {
      if (kind && !event.type.startsWith(`${kind}.`)) continue;
      const row = rowOf(event);
      if (words.every((word) => row.text.includes(word))) shown.push(row);
    }
    shown.reverse();
    note.hidden = (paused ?? model.events).length < KEPT_EVENTS;
    for (const segment of kinds.children) segment.setAttribute("aria-pressed", segment.dataset.kind === kind);
    if (search.value !== q) search.value = q;
    table.show(shown);
    tableOr(list, table, shown.length, () => (model.hasEvents
      ? empty(q || kind ? "No event matches" : "No events in the last hour",
        h("p", {}, "Registrations, expirations and changes of the configuration appear here as they happen."))
      : h("p.loading", {}, "Loading")));
  }

  function showDetail() {
    detail.hidden = !open;
    place.classList.toggle("has-detail", Boolean(open));
    if (!open || detail.dataset.id === `${open} ${model.hasEvents}`) return;
    detail.dataset.id = `${open} ${model.hasEvents}`;
    const event = [...model.events, ...(paused ?? [])].find((each) => each.id === open);
    const head = h("header", {}, h("h2", {}, event ? event.type : "Event"), closeButton(view.escape));
    if (!event) {
      fill(detail, head, h("p.muted", {}, model.hasEvents ? `The page does not have this event. It has those of the last hour, at most ${KEPT_EVENTS.toLocaleString("en")}.` : "Loading"));
      return;
    }
    const { kind, id } = objectOf(event);
    const target = kind === "services" ? url("services", "", { id }) : url(kind, id);
    const text = JSON.stringify(event, null, 2);
    fill(detail, head,
      h("dl", {}, h("dt", {}, "Time"), h("dd", {}, `${exactly(event.timestamp)} (${ago(event.timestamp)})`),
        h("dt", {}, "Object"), h("dd", {}, h("a.mono", { href: target }, h("bdi", {}, id))),
        h("dt", {}, "Id"), h("dd", {}, h("span.mono", {}, event.id), copyButton(event.id, "the event's id"))),
      h("h3", {}, "Event", copyButton(text, "the event")),
      h("pre", { tabindex: "0" }, text.split("\n").map((line) => [line, h("br")])));
  }

  const view = {
    route(wanted) {
      parameters = Object.fromEntries(wanted.parameters);
      const isOther = wanted.rest !== open;
      open = wanted.rest;
      refresh();
      showDetail();
      // After the details are shown: beside them, the list is lower.
      if (isOther) table.select(open || table.selected, { scroll: Boolean(open) });
    },
    update(kinds_) {
      if (kinds_.has("events") && !paused) refresh();
      showDetail();
    },
    escape() {
      if (open) go(url("events", "", parameters));
      else if (parameters.q || parameters.kind) go(url("events"));
      else return false;
      table.grid.focus();
      return true;
    },
    end() { table.end(); },
  };
  return view;
}
