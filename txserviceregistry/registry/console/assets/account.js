/** The session: its user, role, prefixes and limits. */

import { request, signOut } from "./api.js";
import { button, fill, h, identifier } from "./dom.js";
import { exactly, moment } from "./time.js";

const NAMES = { service: "Services", configuration_value: "Configuration values", lock: "Locks" };
const KINDS = [["services", "Services", "beginning with "], ["configuration", "Values", "at or below "], ["locks", "Locks", "beginning with "]];

export function accountView(place, model) {
  const { session } = model;
  const limits = h("div", {}, h("p.muted", {}, "Loading"));
  const term = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  const isLimited = Object.values(session.limits).some((prefixes) => prefixes.length);
  const writable = (kind, where) => {
    const prefixes = model.writable(kind);
    if (prefixes.includes("")) return "all";
    return prefixes.length ? [where, prefixes.map((prefix) => [h("bdi.chip", {}, prefix), " "])] : "none";
  };
  fill(place, h("div.center.cards", {},
    h("section.card", {}, h("h2", {}, "User"), h("dl", {},
      term("Name", identifier(session.user, "the user name")), term("Tenant", identifier(session.tenant, "the tenant")),
      term("Role", [h(`span.badge.${session.role === "write" ? "up" : "drain"}`, {}, session.role), " ",
        session.role !== "write" ? "may read" : isLimited ? "may read everything, and write:" : "may read and write everything"]),
      isLimited && KINDS.map(([kind, title, where]) => term(title, writable(kind, where))),
      term("Session ends", h("time", { datetime: exactly(session.expires), title: exactly(session.expires) }, moment(session.expires)))),
    h("div.actions.start", {}, button("Log out", signOut, { class: "primary" }))),
    h("section.card", {}, h("h2", {}, "Limits"), limits)));

  let found = null;
  let isAsked = false;
  async function load() {
    isAsked = true;
    try {
      found = await request("GET", "/limits");
      show();
    } catch (error) {
      isAsked = false;
      fill(limits, h("p.problem", {}, error.message));
    }
  }

  function show() {
    const { resource, rate } = found;
    const used = { service: model.services.size, configuration_value: model.values.size, lock: model.locks.size };
    fill(limits, h("table.plain", {},
      h("thead", {}, h("tr", {}, ["", "Used", "Limit"].map((text) => h(text ? "th.number" : "th", { scope: "col" }, text || h("span.offscreen", {}, "What"))))),
      h("tbody", {}, Object.entries(resource).map(([name, limit]) => h("tr", {}, h("th", { scope: "row" }, NAMES[name] ?? name.replaceAll("_", " ")),
        h("td.number", {}, (used[name] ?? 0).toLocaleString("en")), h("td.number", {}, limit.toLocaleString("en")))),
      Object.values(rate).map((each) => h("tr", {}, h("th", { scope: "row" }, `Reads in ${each.window.replace(".0 ", " ")}`),
        h("td.number", {}, each.used.toLocaleString("en")), h("td.number", {}, each.limit.toLocaleString("en")))))));
  }

  // Each request counts as a read of the account, and the numbers that change are known without it.
  const update = () => {
    if (found) show();
    else if (model.isLoaded && !isAsked) load();
  };
  return { route: update, update };
}
