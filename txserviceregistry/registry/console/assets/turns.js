/**
 * Which windows of this browser have an event stream for themselves. A browser opens six connections to a host, and a
 * stream needs one of them: with as many, nothing else could be sent. The windows that were used last have streams; the
 * others take turns, and have one for a moment only.
 */

const MOST_STREAMS = 4;
const channel = new BroadcastChannel("registry-console-streams");
const name = Math.random();
const listeners = new Set();
// The windows that were used after this one. One that crashes is counted until this one is used.
const newer = new Set();

channel.addEventListener("message", ({ data }) => {
  if (data.isUsed) newer.add(data.name);
  else newer.delete(data.name);
  for (const listener of [...listeners]) listener();
});

/** Whether this window takes turns. */
export function takesTurns() {
  return newer.size >= MOST_STREAMS;
}

/** This window is used, and needs a stream. */
export function claim() {
  newer.clear();
  channel.postMessage({ name, isUsed: true });
  for (const listener of [...listeners]) listener();
}

/** This window needs no stream. */
export function release() {
  channel.postMessage({ name, isUsed: false });
}

/** Have a function called when this window may begin, or cease, to take turns; the result ends that. */
export function onTurns(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
