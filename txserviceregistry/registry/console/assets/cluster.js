/** The registry itself: its nodes, store, versions and load. */

import { request } from "./api.js";
import { fill, h } from "./dom.js";
import { duration } from "./time.js";

const INTERVAL = 2000;

export function clusterView(place, model) {
  let report = null;
  let rates = {};
  let problem = "";
  let asked = -Infinity;
  let isAsking = false;
  let signature = "";
  // Of its own: a late response must not replace what another view shows.
  const cards = h("div.center.cards", { tabindex: "0" });
  fill(place, cards);

  async function ask() {
    isAsking = true;
    try {
      const next = await request("GET", "/cluster");
      rates = ratesBetween(report, next);
      report = next;
      problem = "";
    } catch (error) {
      problem = error.message;
    }
    isAsking = false;
    asked = performance.now();
    show();
  }

  function show() {
    const wanted = JSON.stringify([report, problem]);
    if (wanted === signature) return;
    signature = wanted;
    if (!report) {
      fill(cards, problem ? h("p.problem", { role: "alert" }, problem) : h("p.loading", {}, "Loading"));
      return;
    }
    const { store, version, uptime, figures, nodes } = report;
    fill(cards,
      problem ? h("p.problem", { role: "alert" }, `Not current: ${problem}`) : null,
      h("section.figures", { "aria-label": "Figures" },
        figure("Services", figures.services), figure("Heartbeats per second", rates.heartbeats),
        figure("Subscribers", figures.subscribers), figure("Requests per second", rates.requests)),
      h("section.card", {}, h("h2", {}, "This node"), h("dl", {},
        term("Version", version), term("Uptime", duration(uptime)),
        term("Store", [store.name, " ", h(`span.badge.${store.state === "ok" ? "up" : "out"}`, {}, store.state)]),
        Object.entries(report.details ?? {}).map(([key, value]) => term(key, String(value))))),
      h("section.card", {}, h("h2", {}, nodes.length > 1 ? `${nodes.length} nodes` : "Nodes"), nodes.length
        ? h("table.plain", {}, h("thead", {}, h("tr", {}, ["Node", "Heartbeats"].map((text) => h("th", { scope: "col" }, text)))),
          h("tbody", {}, nodes.map((node) => h("tr", {},
            h("td", {}, h("bdi.mono", {}, node.name), node.is_this ? h("span.chip", {}, "this one") : null),
            h("td", {}, node.may_acknowledge === null ? "–" : node.may_acknowledge
              ? h("span.badge.up", {}, "acknowledged") : h("span.badge.drain", {}, "refused: cut off from the store"))))))
        : h("p.muted", {}, `One node over ${store.name}. With etcd as the store, several nodes can share the work.`)));
  }

  return {
    route() { show(); if (!isAsking) ask(); },
    tick() { if (!isAsking && !document.hidden && performance.now() - asked > INTERVAL) ask(); },
  };
}

/** Heartbeats and requests per second; none between reports of two nodes, or from before and after a restart. */
function ratesBetween(before, now) {
  const seconds = now.uptime - before?.uptime;
  if (!(seconds > 0) || before.nodes[0]?.name !== now.nodes[0]?.name) return {};
  const rate = (name) => (now.figures[name] - before.figures[name]) / seconds;
  return { heartbeats: rate("heartbeats"), requests: rate("requests") };
}

function figure(title, value) {
  const text = value === null || value === undefined ? "–"
    : value >= 10 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toFixed(1);
  return h("div.figure", {}, h("div.number", {}, text), h("div.label", {}, title));
}

function term(name, value) {
  return [h("dt", {}, name), h("dd", {}, value)];
}
