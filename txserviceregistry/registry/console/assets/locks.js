/** Locks: who holds them, since when, with which fence. */

import { request } from "./api.js";
import { actions, button, closeButton, command, dialog, empty, fill, folded, formOf, h, identifier, toast, wordsOf } from "./dom.js";
import { metadata } from "./service.js";
import { Table, tableOr } from "./table.js";
import { ago, exactly } from "./time.js";

const COLUMNS = [
  { key: "name", title: "Lock", order: (row) => row.id, cell: (row) => h("bdi.mono", { title: row.id }, row.id) },
  { key: "holder", title: "Holder", order: (row) => row.lock.holder ?? "", cell: (row) => h("bdi", { title: row.lock.holder }, row.lock.holder || "–") },
  { key: "fence", title: "Fence", order: (row) => row.lock.fence, cell: (row) => h("span.mono", {}, row.lock.fence) },
  { key: "since", title: "Held since", order: (row) => row.lock.acquired_at, cell: () => h("span.when") },
  { key: "timeout", title: "Timeout", order: (row) => row.lock.timeout, cell: (row) => `${row.lock.timeout} s` },
];

export function locksView(place, model, { url, go }) {
  let parameters = {};
  let open = "";
  const change = (changes) => go(url("locks", open, { ...parameters, ...changes }), { replace: true });
  const search = h("input", {
    type: "search", placeholder: "Filter by name or holder  ( / )", "aria-label": "Filter", spellcheck: "false",
    oninput: () => change({ q: search.value }),
  });
  const table = new Table("Locks", COLUMNS, {
    open: (row) => go(url("locks", row.id, parameters)),
    sorted: (sort) => change({ sort }),
    tick: (row, element) => { element.querySelector(".when").textContent = ago(row.lock.acquired_at); },
  });
  const list = h("section.list", { "aria-label": "Locks" });
  const detail = h("aside.detail", { hidden: true, "aria-label": "Lock" });
  fill(place, h("div.center", {}, h("div.tools", {}, search), list), detail);

  function refresh() {
    const { q = "", sort = "name" } = parameters;
    const words = wordsOf(q);
    const shown = [...model.locks.values()]
      .filter((lock) => words.every((word) => folded(`${lock.name} ${lock.holder ?? ""}`).includes(word)))
      .map((lock) => ({ id: lock.name, lock }));
    if (search.value !== q) search.value = q;
    table.show(shown, sort);
    tableOr(list, table, shown.length, () => (model.isLoaded
      ? empty(q ? "No lock matches" : "No locks are held", h("p", {}, "Hold one while a command runs:"),
        command("raxsr lock /production/scheduler -- sleep 60"))
      : h("p.loading", {}, "Loading")));
    table.tick();
  }

  function showDetail() {
    detail.hidden = !open;
    place.classList.toggle("has-detail", Boolean(open));
    const lock = model.locks.get(open);
    const signature = JSON.stringify([open, lock, model.isLoaded]);
    if (!open || detail.dataset.signature === signature) return;
    detail.dataset.signature = signature;
    const head = h("header", {}, h("h2", {}, identifier(open, "the name")), closeButton(view.escape));
    if (!lock) {
      fill(detail, head, h("p.muted", {}, model.isLoaded ? "The lock is free." : "Loading"));
      return;
    }
    fill(detail, head,
      h("dl", {}, h("dt", {}, "Holder"), h("dd", {}, lock.holder ? identifier(lock.holder, "the holder") : "–"),
        h("dt", {}, "Fence"), h("dd", {}, identifier(String(lock.fence), "the fence")),
        h("dt", {}, "Held since"), h("dd", {}, exactly(lock.acquired_at)),
        h("dt", {}, "Timeout"), h("dd", {}, `${lock.timeout} s`)),
      model.mayWrite("locks", open) ? h("div.actions.start", {}, button("Force release…", () => forceRelease(lock), { class: "danger" })) : null,
      h("h3", {}, "Metadata"), metadata(lock));
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
    update(kinds) { if (kinds.has("locks")) { refresh(); showDetail(); } },
    tick() { table.tick(); },
    escape() {
      if (!open && !parameters.q) return false;
      go(open ? url("locks", "", parameters) : url("locks"));
      table.grid.focus();
      return true;
    },
    end() { table.end(); },
  };
  return view;
}

function forceRelease(lock) {
  return dialog(`Release ${lock.name} by force?`, (close) => {
    const now = h("input", { type: "checkbox", id: "now" });
    return formOf(async () => {
      close();
      const [held] = (await request("GET", `/locks?name=${encodeURIComponent(lock.name)}`)).values;
      if (held?.fence !== lock.fence) throw new Error("Nothing is released: the lock has been released, or has another holder meanwhile");
      await request("POST", "/locks/release", { body: { name: lock.name, force: true, ...(now.checked ? { now: true } : {}) } });
      toast(now.checked ? `${lock.name} is free` : `${lock.name} will be free within ${lock.timeout} s`);
    },
    h("p", {}, `The holder, `, h("bdi", {}, lock.holder || "unnamed"), `, learns of it with its next heartbeat. `
      + `The lock becomes free when the holder's timeout of ${lock.timeout} s has passed.`),
    h("label.check", {}, now, "Free it at once. The holder may still be working: two may act at the same time."),
    actions(close, "Release", "danger"));
  });
}
