/** Services: by tag and state, filtered, with the age of each heartbeat; beside the table, the one that is open. */

import { command, empty, fill, folded, h, visible, wordsOf } from "./dom.js";
import { ageElement, ageOf, showAge } from "./heartbeat.js";
import { addressOf, weightOf } from "./model.js";
import { showService } from "./service.js";
import { Table, tableOr } from "./table.js";
import { ago } from "./time.js";

// Links are slow to make, and each service may have tags of its own.
const MOST_TAGS = 200;
const STATES = [["", "All"], ["up", "Up"], ["drain", "Draining"], ["out", "Out"], ["expired", "Expired"]];

const COLUMNS = [
  {
    key: "id", title: "Service", order: (row) => row.id,
    cell: (row) => [h(`span.dot.${row.state}`, { title: row.state, role: "img", "aria-label": row.state }), h("bdi.mono", { title: row.id }, row.id)],
  },
  { key: "tags", title: "Tags", cell: (row) => row.service.tags.map((tag) => h("bdi.chip", { title: tag }, tag)) },
  { key: "address", title: "Address", order: (row) => row.address, cell: (row) => h("bdi.mono", { title: row.address }, row.address || "–") },
  { key: "zone", title: "Zone", order: (row) => row.zone, cell: (row) => h("bdi", { title: row.zone }, row.zone || "–") },
  { key: "weight", title: "Weight", order: (row) => row.weight, cell: (row) => String(row.weight) },
  {
    key: "heartbeat", title: "Last heartbeat", order: (row) => (row.kind ? Infinity : ageOf(row.service) ?? -1),
    cell: (row) => (row.kind ? h("span.muted.when", {}) : ageElement()),
  },
  { key: "state", title: "State", order: (row) => row.state, cell: (row) => h(row.state === "up" ? "span.muted" : `span.badge.${row.state}`, { title: row.reason }, row.state) },
];

function tick(row, element) {
  const age = element.querySelector(".age");
  if (age) showAge(age, row.service);
  else element.querySelector(".when").textContent = `expired ${ago(row.service.expiredAt)}`;
}

function optionText(name, count) {
  return `${visible(name) || "All tags"} (${count})`;
}

export function servicesView(place, model, { url, go }) {
  let parameters = {};
  let rows = new Map();
  let open = null;
  let ticks = 0;
  let isAsking = false;

  const change = (changes) => go(url("services", "", { ...parameters, ...changes }), { replace: true });
  const tags = h("nav.tag-list", { "aria-label": "Tags" });
  const select = h("select.tag-select", { "aria-label": "Tag", onchange: () => change({ tag: select.value }) });
  const search = h("input", {
    type: "search", placeholder: "Filter by id, tag or key=value  ( / )", "aria-label": "Filter", spellcheck: "false",
    oninput: () => change({ q: search.value }),
  });
  const states = h("div.segments", { role: "group", "aria-label": "State" }, STATES.map(([state, title]) =>
    h("button", { type: "button", "data-state": state, onclick: () => change({ state }) }, title, h("span.count"))));
  const table = new Table("Services", COLUMNS, {
    open: (row) => go(url("services", "", { ...parameters, id: row.id })),
    sorted: (sort) => change({ sort }),
    tick,
  });
  const list = h("section.list", { "aria-label": "Services" });
  const detail = h("aside.detail", { hidden: true, "aria-label": "Service" });
  fill(place, tags, h("div.center", {}, h("div.tools", {}, select, search, states), list), detail);

  function makeRow(service, kind) {
    const before = rows.get(service.id);
    const state = model.stateOf(service.id);
    if (before && before.service === service && before.record === state.state && before.reason === state.reason && before.kind === kind) return before;
    const { metadata } = service;
    return {
      id: service.id, kind, service, record: state.state, reason: state.reason,
      state: kind || (state.state === "up" && metadata.status === "disabled" ? "disabled" : state.state),
      address: addressOf(service, model.session.address_keys), zone: metadata.zone ?? "", weight: weightOf(service),
      text: folded([service.id, ...service.tags, ...Object.entries(metadata).map(([key, value]) => `${key}=${value}`)].join("\n")),
    };
  }

  function collect() {
    const collected = new Map();
    for (const service of model.services.values()) collected.set(service.id, makeRow(service, ""));
    for (const service of model.expired.values()) {
      if (!collected.has(service.id)) collected.set(service.id, makeRow(service, "expired"));
    }
    rows = collected;
  }

  function refresh() {
    const { tag = "", state = "", q = "", sort = "id" } = parameters;
    const words = wordsOf(q);
    const counts = new Map();
    const perState = { "": 0, up: 0, drain: 0, out: 0, expired: 0 };
    const shown = [];
    let alive = 0;
    for (const row of rows.values()) {
      const isAlive = !row.kind;
      alive += isAlive;
      // A tag with expired services only is listed too, with a count of 0.
      for (const each of new Set(row.service.tags)) counts.set(each, (counts.get(each) ?? 0) + isAlive);
      if (tag && !row.service.tags.includes(tag)) continue;
      if (!words.every((word) => row.text.includes(word))) continue;
      const group = row.kind || row.record;
      perState[group] += 1;
      perState[""] += 1;
      if (state ? group === state : true) shown.push(row);
    }
    showTags(counts, alive, tag);
    for (const segment of states.children) {
      const name = segment.dataset.state;
      const count = segment.querySelector(".count");
      if (count.textContent !== String(perState[name])) count.textContent = perState[name];
      segment.setAttribute("aria-pressed", name === state);
    }
    if (search.value !== q) search.value = q;
    table.show(shown, sort);
    tableOr(list, table, shown.length, () => nothing(alive, q || tag || state));
  }

  function showTags(counts, alive, tag) {
    const byName = ([a], [b]) => (a < b ? -1 : 1);
    let shown = [...counts];
    if (counts.size > MOST_TAGS) shown = shown.sort((a, b) => b[1] - a[1] || byName(a, b)).slice(0, MOST_TAGS);
    const entries = [["", alive], ...shown.sort(byName)];
    if (tag && !entries.some(([name]) => name === tag)) entries.push([tag, counts.get(tag) ?? 0]);
    const note = counts.size > MOST_TAGS ? `Only the ${MOST_TAGS} most frequent of ${counts.size.toLocaleString("en")} tags are listed. Filter for the others.` : null;
    const signature = JSON.stringify([entries.map(([name]) => name), note, parameters]);
    if (tags.dataset.signature === signature) {
      // The same tags with other counts: links are slow to make.
      const links = tags.querySelectorAll(".count");
      const options = [...select.options];
      entries.forEach(([name, count], index) => {
        if (links[index].textContent === String(count)) return;
        links[index].textContent = count;
        options[index].textContent = optionText(name, count);
      });
      return;
    }
    tags.dataset.signature = signature;
    fill(tags, h("h2", {}, "Tags"), entries.map(([name, count]) => h("a", {
      href: url("services", "", { ...parameters, tag: name, id: "" }), "data-key": name, "aria-current": name === tag ? "true" : null,
    }, h("bdi.name", { title: name || "All services" }, name || "All"), h("span.count", {}, String(count)))), note && h("p.hint", {}, note));
    fill(select, entries.map(([name, count]) =>
      h("option", { value: name, selected: name === tag }, optionText(name, count))), note && h("option", { disabled: true }, note));
    select.value = tag;
  }

  function nothing(alive, isFiltered) {
    if (!model.isLoaded) return h("p.loading", {}, "Loading");
    if (isFiltered) {
      return empty("No service matches", h("p", {}, `${alive} services are registered.`),
        h("button", { type: "button", onclick: () => go(url("services")) }, "Clear the filter"));
    }
    return empty("No services yet", h("p", {}, "Register a first one. On the registry's machine:"),
      command("twistd -n --pidfile= service-registry-agent --id first-service --tags demo"),
      h("p", {}, "It appears here as soon as it is registered."));
  }

  function showDetail() {
    const id = parameters.id ?? "";
    const row = rows.get(id);
    detail.hidden = !id;
    place.classList.toggle("has-detail", Boolean(id));
    if (id !== open) table.select(id || table.selected, { scroll: Boolean(id) });
    open = id;
    if (id) showService(detail, model, id, row, { close: view.escape, url });
  }

  async function askTimes() {
    const ids = new Set(table.visibleRows().filter((row) => !row.kind).map((row) => row.id));
    if (open && model.services.has(open)) ids.add(open);
    if (isAsking || !model.isLoaded || document.hidden || !ids.size) return;
    isAsking = true;
    await model.refreshTimes([...ids]).catch(() => null);
    isAsking = false;
  }

  const view = {
    route(wanted) {
      parameters = Object.fromEntries(wanted.parameters);
      collect();
      refresh();
      showDetail();
    },
    update(kinds) {
      if (kinds.has("services")) { collect(); refresh(); }
      if (kinds.has("services") || (open && kinds.has("events"))) showDetail();
    },
    tick() {
      table.tick();
      const age = detail.querySelector(".age");
      if (age && rows.get(open)) showAge(age, rows.get(open).service);
      if ((ticks += 1) % 4 === 1) askTimes();
    },
    escape() {
      if (parameters.id) change({ id: "" });
      else if (parameters.q || parameters.tag || parameters.state) go(url("services"));
      else return false;
      table.grid.focus();
      return true;
    },
    end() { table.end(); },
  };
  return view;
}
