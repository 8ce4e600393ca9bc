/** The age of a heartbeat, as a part of the timeout. */

import { h } from "./dom.js";
import { duration, serverNow } from "./time.js";

/** The age of a service's last heartbeat in seconds; null if it is not known. */
export function ageOf(service) {
  return service.last_seen === null || service.last_seen === undefined ? null
    : Math.max(0, (serverNow() - service.last_seen) / 1000);
}

/** The bar and the text of a heartbeat's age, to be filled by showAge. */
export function ageElement() {
  return h("span.age", {}, h("span.track", { "aria-hidden": "true" }, h("span.fill")), h("span.text"));
}

export function showAge(element, service) {
  const age = ageOf(service);
  const text = age === null ? `none / ${service.heartbeat_timeout} s` : `${duration(age)} / ${service.heartbeat_timeout} s`;
  const share = age === null ? 0 : Math.min(1, age / service.heartbeat_timeout);
  element.querySelector(".text").textContent = text;
  const bar = element.querySelector(".fill");
  bar.style.transform = `scaleX(${share})`;
  bar.className = share >= 0.95 ? "fill late" : share > 0.85 ? "fill soon" : "fill";
}
