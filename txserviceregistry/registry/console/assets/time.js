/** Times: the registry's clock as this page knows it, how times are written, and waiting. */

// Against the page's own clock: unlike the browser's, it can't be set.
let offset = performance.timeOrigin;

/** The registry has just said what time it is, in milliseconds since the epoch. */
export function setServerTime(now) {
  offset = now - performance.now();
}

/** The registry's time, in milliseconds since the epoch. */
export function serverNow() {
  return performance.now() + offset;
}

/** A duration in words of a table: "3.2 s", "4 min", "2 h". */
export function duration(seconds) {
  if (seconds < 0) return "0 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** How long ago a moment was, in milliseconds since the epoch. */
export function ago(moment) {
  const seconds = (serverNow() - moment) / 1000;
  return seconds < 1 ? "now" : `${duration(seconds)} ago`;
}

/** A moment, with its day if that is not today. */
export function moment(milliseconds) {
  const date = new Date(milliseconds);
  const time = date.toLocaleTimeString([], { hourCycle: "h23" });
  return date.toDateString() === new Date(serverNow()).toDateString() ? time : `${date.toLocaleDateString()} ${time}`;
}

/** A moment, exactly. */
export function exactly(milliseconds) {
  return new Date(milliseconds).toISOString();
}

/** Wait so many milliseconds. */
export function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
